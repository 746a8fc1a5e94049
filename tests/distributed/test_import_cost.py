"""What `import launcher` loads, seen in a process that has loaded nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.distributed


def test_importing_costs_nothing_heavy() -> None:
    heavy = ("torch", "ray", "kubernetes", "hydra", "omegaconf", "obstore", "numpy", "rich", "wandb", "click")
    code = "import sys, launcher; early = set(sys.modules); import launcher.jobs, launcher.sdk; print([n for n in {heavy} if n in early], [n for n in {heavy} if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code.format(heavy=heavy)], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[] []"
