import subprocess
import sys

import click
import pytest

from launcher.cli import verbs
from launcher.cli.main import main
from launcher.core.errors import JobFailed

pytestmark = pytest.mark.unit


def test_help_names_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [verb for verb in verbs.VERBS if f"  {verb} " not in shown] == []


def test_help_loads_only_click() -> None:
    program = (
        "import sys; from launcher.cli.main import main; main(['--help']); "
        "print(sorted(name for name in sys.modules if name.startswith(('launcher.', 'hydra', 'obstore', 'json'))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "['launcher.cli', 'launcher.cli.main', 'launcher.cli.verbs']\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("launcher ")


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("stat", "status"), ("plam", "plan")])
def test_an_unknown_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str], typed: str, meant: str) -> None:
    assert main([typed, "x"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, f"did you mean {meant}" in shown.err) == ("", True)


def test_every_verb_can_be_loaded() -> None:
    context = click.Context(verbs.launch)
    assert all(isinstance(verbs.launch.get_command(context, name), click.Command) for name in verbs.VERBS)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(JobFailed("it broke"), 1), (KeyboardInterrupt(), 130), (click.Abort(), 130), (click.UsageError("no"), 2), (BrokenPipeError(), 130)],
)
def test_what_a_verb_raises_becomes_an_exit_code(monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr(verbs.LazyGroup, "get_command", lambda *_: click.Command("ls", callback=fail))
    if isinstance(raised, BrokenPipeError):
        monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["ls"]) == code


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_errors_are_red_only_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["nonsense"]) == 2
    assert ("\x1b[" in capsys.readouterr().err) is coloured
