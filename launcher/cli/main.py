"""The command `launch`: which verbs there are, and the only place that turns what happened into an exit code.

Verbs are loaded when they run, so that `launch --help` costs hardly more than importing click.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

VERBS: dict[str, tuple[str, str]] = {
    "train": ("launcher.cli.hydra_verbs:train", "Train a model: start a job and watch it (-d: leave it alone)."),
    "plan": ("launcher.cli.hydra_verbs:plan", "Show what train would submit, and whether it fits; touch nothing."),
    "ls": ("launcher.cli.run_verbs:ls", "List the runs."),
    "status": ("launcher.cli.run_verbs:status", "Show the state of a run."),
    "logs": ("launcher.cli.run_verbs:logs", "Show what the workers of a run wrote."),
    "events": ("launcher.cli.run_verbs:events", "Show what happened in a run, in order."),
    "stop": ("launcher.cli.run_verbs:stop", "Save a checkpoint and end a run."),
    "resume": ("launcher.cli.run_verbs:resume", "Go on with a run that ended, also for longer."),
    "dashboard": ("launcher.cli.run_verbs:dashboard", "Show where a run's Ray dashboard is."),
    "completion": ("launcher.cli.completion:completion", "Print the script that teaches a shell to complete."),
}
"""Module and attribute of each verb, as text, and its line of help."""


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        from importlib import import_module

        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-"):
            from launcher.core.errors import UsageError, nearest

            raise UsageError(
                f"there is no verb {args[0]}",
                given=f"launch {' '.join(args)}",
                expected=nearest(args[0], VERBS),
                next="`launch --help` says what each does",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from launcher import __version__

        click.echo(f"launcher {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`launch VERB --help` says more; `launch train --help` lists the groups and keys of a configuration.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version and exit.")
def launch() -> None:
    """Train PyTorch models on GPUs that come and go: `launch train +model=resnet`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code, one of launcher.core.exit_codes."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result: Any = launch.main(arguments, prog_name="launch", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return _code("USAGE")
    except (click.Abort, KeyboardInterrupt):
        return _code("INTERRUPTED")
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not try to flush to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _code("INTERRUPTED")
    except _launcher_error() as error:
        _print_error(error)
        return int(error.exit_code)
    return int(result or 0)


def _launcher_error() -> Any:
    """The class to catch; looked up only when something was raised."""
    from launcher.core.errors import LauncherError

    return LauncherError


def _code(name: str) -> int:
    from launcher.core.exit_codes import ExitCode

    return int(ExitCode[name])


def _print_error(error: Any) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        import traceback

        traceback.print_exception(error)
    first, *rest = str(error).splitlines() or [type(error).__name__]
    coloured = not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or sys.stderr.isatty())
    click.echo("\n".join([click.style(f"error: {first}", fg="red", bold=True), *rest]), err=True, color=coloured)
