"""The verbs of `launch`, as click knows them: loaded when they run, so that `launch --help` costs hardly more than importing click."""

from __future__ import annotations

import click

VERBS: dict[str, tuple[str, str]] = {
    "train": ("launcher.cli.hydra_verbs:train", "Train a model: start a job and watch it (-d: leave it alone)."),
    "plan": ("launcher.cli.hydra_verbs:plan", "Show what train would submit, and whether it fits; touch nothing."),
    "doctor": ("launcher.cli.doctor_verb:doctor", "Check that a job could run: the cluster, its rights, the image, the run store."),
    "ls": ("launcher.cli.run_verbs:ls", "List the runs."),
    "status": ("launcher.cli.run_verbs:status", "Show the state of a run."),
    "logs": ("launcher.cli.run_verbs:logs", "Show what the workers of a run wrote."),
    "events": ("launcher.cli.run_verbs:events", "Show what happened in a run, in order."),
    "resize": ("launcher.cli.run_verbs:resize", "Change how many workers a run has, or may have."),
    "stop": ("launcher.cli.run_verbs:stop", "Save a checkpoint and end a run."),
    "resume": ("launcher.cli.run_verbs:resume", "Go on with a run that ended, also for longer."),
    "dashboard": ("launcher.cli.run_verbs:dashboard", "Show where a run's Ray dashboard is."),
    "completion": ("launcher.cli.completion:completion", "Print the script that teaches a shell to complete."),
}
"""Module and attribute of each verb, as text, and its line of help."""


class HydraVerb(click.Command):
    """A verb whose command line belongs to Hydra: click only passes it on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params = {"arguments": tuple(args)}
        return []


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        from importlib import import_module

        module, _, attribute = VERBS[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        return found if isinstance(found, click.Command) else HydraVerb(cmd_name, callback=found)

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
