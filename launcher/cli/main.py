"""The command `launch`: the only place that turns what happened into an exit code.

Nothing is imported before it is known to be needed: `launch --help` costs hardly more than importing click, and
`launch train --cfg job` hardly more than Hydra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.cli import HYDRA_VERBS

if TYPE_CHECKING:
    from launcher.core.errors import LauncherError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code, one of launcher.core.exit_codes."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _hydra_verb(arguments) if arguments[:1] and arguments[0] in HYDRA_VERBS else _click_verb(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _code("INTERRUPTED")
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not try to flush to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _code("INTERRUPTED")
    except _launcher_error() as error:
        _print_error(error)
        return int(error.exit_code)
    return code


def _hydra_verb(arguments: Sequence[str]) -> int:
    if arguments[0] == "doctor":
        from launcher.cli.doctor_verb import doctor

        return int(doctor(tuple(arguments[1:])))
    from launcher.cli import hydra_verbs

    verb = hydra_verbs.train if arguments[0] == "train" else hydra_verbs.plan
    return int(verb(tuple(arguments[1:])))


def _click_verb(arguments: list[str]) -> int:
    import click

    from launcher.cli.verbs import launch

    try:
        result: object = launch.main(arguments, prog_name="launch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return _code("USAGE")
    except click.Abort:
        return _code("INTERRUPTED")
    return result if isinstance(result, int) else 0


def _launcher_error() -> type[LauncherError]:
    """The class to catch; looked up only when something was raised."""
    from launcher.core.errors import LauncherError

    return LauncherError


def _code(name: str) -> int:
    from launcher.core.exit_codes import ExitCode

    return int(ExitCode[name])


def _print_error(error: LauncherError) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        import traceback

        traceback.print_exception(error)
    first, *rest = str(error).splitlines() or [type(error).__name__]
    coloured = not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or sys.stderr.isatty())
    start, end = ("\x1b[1;31m", "\x1b[0m") if coloured else ("", "")
    print("\n".join([f"{start}error: {first}{end}", *rest]), file=sys.stderr)
