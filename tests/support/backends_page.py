"""The code of docs/backends.md, loaded as if its files were in the tree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest import mock

from launcher.backends import base
from launcher.config import backend_groups, keys, schema

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()
FILES: dict[str, str] = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BACKEND = "launcher/backends/ssh/backend.py"
GROUP = "launcher/config/backend_groups.py"
CHOICE = "configs/backend/ssh.yaml"


@contextmanager
def loaded(folder: Path) -> Iterator[ModuleType]:
    """The backend's module, while the configuration and the table of backends know it; `folder` gets the page's files."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    group_file = folder / GROUP
    # The page shows what is added to a file that has these lines already.
    begins = "from __future__ import annotations\n\nfrom dataclasses import dataclass\nfrom typing import Literal\n\n"
    group_file.write_text(f"{begins}from launcher.core.errors import ConfigError\n\n\n{group_file.read_text()}")
    with mock.patch.dict(sys.modules), mock.patch.dict(base.BACKENDS, ssh="launcher.backends.ssh.backend:SshBackend"):
        chosen = _module("ssh_group_of_the_page", group_file).SshConfig
        union = backend_groups.BackendConfig | chosen
        with (
            mock.patch.object(schema, "SshConfig", chosen, create=True),
            mock.patch.object(schema, "BackendConfig", union),
        ):
            keys.hints_of.cache_clear()
            try:
                yield _module("launcher.backends.ssh.backend", folder / BACKEND)
            finally:
                keys.hints_of.cache_clear()


def _module(name: str, path: Path) -> ModuleType:
    found = spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[name] = module_from_spec(found)
    found.loader.exec_module(module)
    return module
