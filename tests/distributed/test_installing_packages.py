"""A job's extra packages, installed by the real pip from wheels in a folder, in processes of their own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from launcher.runtime.worker.packages import installed_constraints

pytestmark = pytest.mark.distributed
USE = """
import sys
from pathlib import Path
from launcher.core.errors import LauncherError
from launcher.runtime.worker.packages import provide
requirements, into, limit_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
try:
    where = provide(requirements.read_bytes(), sys.argv[4], into, limit_s=limit_s)
except LauncherError as error:
    sys.exit(f"{type(error).__name__}: {error}")
import little_tool, click
print(where, little_tool.ANSWER, little_tool.__file__, click.__file__)
"""


def wheel(folder: Path, name: str, number: str, needs: str = "") -> None:
    """The least that pip takes for a wheel."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{number}.dist-info"
    files = {
        f"{module}.py": "ANSWER = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n" + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-{number}-py3-none-any.whl", "w") as target:
        for path, text in files.items():
            target.writestr(path, text)


class Machine:
    """Where workers install: wheels to choose from, and a state folder."""

    def __init__(self, folder: Path) -> None:
        self.into, self.requirements, self.wheels = folder / "state" / "packages", folder / "extra.txt", folder / "wheels"
        self.wheels.mkdir()

    def start(self, *lines: str, limit_s: float = 60.0) -> subprocess.Popen[str]:
        self.requirements.write_text("\n".join(["--no-index", f"--find-links {self.wheels}", *lines, ""]))
        command = [sys.executable, "-c", USE, str(self.requirements), str(self.into), str(limit_s), self.digest]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.into.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_one_installs_and_the_others_wait_for_it(machine: Machine) -> None:
    wheel(machine.wheels, "little-tool", "1.0", needs="click>=8")
    first, second = machine.start("little-tool"), machine.start("little-tool")
    answers = [process.communicate(timeout=100) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), answers
    where = machine.into / machine.digest
    words = [answer.splitlines()[-1].split() for answer, _ in answers]
    for folder, answer, tool, click in words:
        assert (folder, answer) == (str(where), "42")
        assert tool.startswith(str(where))
        assert not click.startswith(str(machine.into))  # what is there counts as installed
    assert sum("Successfully installed" in answer for answer, _ in answers) == 1
    assert machine.left() == [machine.digest]
    machine.wheels.rename(machine.wheels.with_name("gone"))
    again = subprocess.run(first.args, capture_output=True, text=True, check=True, timeout=60)  # type: ignore[call-overload]
    assert "42" in again.stdout


def test_nobody_replaces_what_the_image_has(machine: Machine) -> None:
    wheel(machine.wheels, "little-tool", "1.0", needs="click==0.0.1")
    wheel(machine.wheels, "click", "0.0.1")
    process = machine.start("little-tool")
    _, error = process.communicate(timeout=100)
    assert process.returncode == 1
    assert error.startswith("UserCodeError: the job's extra packages are missing")
    assert "backend.requirements" in error
    assert "click" in error.partition("given:")[2]  # pip's own words
    assert machine.left() == []


def test_what_pip_does_not_find_is_told_in_its_words(machine: Machine) -> None:
    process = machine.start("little-tool==7")
    _, error = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "No matching distribution found for little-tool==7" in error
    assert "put the packages into the image" in error


def test_an_installation_that_does_not_end_is_ended(machine: Machine) -> None:
    wheel(machine.wheels, "little-tool", "1.0")
    process = machine.start("little-tool", limit_s=0.01)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "it was ended after 0.01 s" in error
    assert machine.left() == []


def test_all_that_is_installed_is_held() -> None:
    held = installed_constraints().splitlines()
    assert f"torch=={version('torch')}" in held
    assert f"ray=={version('ray')}" in held
    assert len(held) == len({line.partition("==")[0] for line in held})
