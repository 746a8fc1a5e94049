from __future__ import annotations

import pytest

from launcher.jobspec.code_variables import variables_read

pytestmark = pytest.mark.unit
CODE = b"""
import os
from os import environ, getenv
os.environ["A"], environ.get("B", "/b"), os.getenv("C"), getenv("D", None), os.environ.pop("E")
os.environ["SET"] = "1"
os.environ.setdefault("DEFAULT", "1")
os.environ[name], os.environ.get(name), config.get("NOT")
"""


def test_names_are_found_where_code_reads_them() -> None:
    assert variables_read({"models/net.py": CODE}) == {"A", "B", "C", "D", "E"}


def test_what_is_no_python_reads_nothing() -> None:
    assert variables_read({"a.py": b"environ[", "b.py": b"environ\0", "c.sh": CODE, "d.py": b"\xff environ"}) == frozenset()
