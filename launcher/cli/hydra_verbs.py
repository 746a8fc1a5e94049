"""The verbs that take a configuration, `train` and `plan`: Hydra applications with a few options of our own."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from launcher.core.errors import ConfigError, UsageError, nearest

if TYPE_CHECKING:
    from launcher.config.schema import JobConfig

SHELLS = ("bash", "zsh", "fish")
OUTPUTS = ("text", "json")


@dataclass(frozen=True)
class VerbOptions:
    """What a command line says to launcher, and what is left of it for Hydra."""

    rest: tuple[str, ...] = ()
    detach: bool = False
    output: Literal["text", "json"] = "text"


def read_options(arguments: Sequence[str]) -> VerbOptions:
    """Take our own options out of a command line, wherever they stand; what follows `--` is left alone. Raises UsageError."""
    options, rest = VerbOptions(), list[str]()
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.partition("=")
        if argument == "--":
            rest += remaining
            break
        if argument in ("-d", "--detach"):
            options = replace(options, detach=True)
        elif name in ("-o", "--output"):
            form = value if equals else remaining.pop(0) if remaining else ""
            options = replace(options, output=_output(form, name))
        elif argument in ("-ojson", "-otext"):
            options = replace(options, output=_output(argument[2:], "-o"))
        else:
            rest.append(argument)
    return replace(options, rest=tuple(rest))


def _output(form: str, name: str) -> Literal["text", "json"]:
    if form not in OUTPUTS:
        raise UsageError("no such form of output", where=f"{name} (command line)", given=form or "nothing", expected=nearest(form, OUTPUTS))
    return cast(Literal["text", "json"], form)


def train(arguments: tuple[str, ...]) -> int:
    """Start a job and show it until it ends, or with -d until it is started."""
    options = read_options(arguments)
    configs = configurations("train", options)
    if not configs:
        return 0
    _refuse_one_name_twice(configs)
    from launcher import jobs
    from launcher.cli import watch

    codes: list[int] = []
    for config in configs:
        ref = jobs.submit(config, folder=Path.cwd(), tell=lambda sentence: print(sentence, file=sys.stderr))
        code = watch.submitted(ref, output=options.output) if options.detach else watch.follow(ref, output=options.output)
        codes.append(int(code))
        if codes[-1] == 130:
            break  # the person who is watching has had enough: start nothing more
    return max(codes)


def plan(arguments: tuple[str, ...]) -> int:
    """Show what `train` with the same words would submit; touch nothing."""
    options = read_options(arguments)
    if options.detach:
        raise UsageError("a plan starts nothing that could be left alone", where="--detach (command line)", next="leave it out")
    configs = configurations("plan", options)
    for config in configs:
        from launcher import jobs

        planned = jobs.plan(config, folder=Path.cwd())
        if options.output == "json":
            print(json.dumps(planned.to_json(), allow_nan=False))
        else:
            from click import echo

            from launcher.cli.render import plan_text
            from launcher.cli.screen import colour_wanted

            echo(plan_text(planned), color=colour_wanted(sys.stdout))
    return 0


def configurations(verb: str, options: VerbOptions) -> list[JobConfig]:
    """The configurations that the words make: several with --multirun, none where Hydra only shows something. Raises ConfigError."""
    if {"-sc", "--shell-completion"} & set(options.rest) and _complete(verb, options.rest):
        return []
    # Hydra makes very many small objects that live as long as this: looking for garbage among them costs a tenth of the time.
    gc.disable()
    try:
        from launcher.config.load import run_application

        return run_application(options.rest, folder=Path.cwd(), verb=verb)
    finally:
        gc.enable()


def _refuse_one_name_twice(configs: Sequence[JobConfig]) -> None:
    name = configs[0].name
    if len(configs) > 1 and name is not None and [config.name for config in configs].count(name) > 1:
        raise ConfigError(
            "several jobs cannot have one name",
            where="name",
            given=name,
            expected="a name for each, or none",
            next="leave name out, or make it of what differs: name='${trainer.precision}-${seed}'",
        )


def _complete(verb: str, arguments: Sequence[str]) -> bool:
    """Answer Hydra's completion flag where Hydra would lose the verb: its script, and the line that its script asks about."""
    asked = dict(argument.partition("=")[::2] for argument in arguments)
    if asked.get("install") in SHELLS:
        from launcher.cli.completion import SCRIPTS

        print(SCRIPTS[asked["install"]], end="")
        return True
    if "query" in asked:
        from launcher.cli.completion import candidates

        line = os.environ.get("COMP_LINE", "")
        print(" ".join(candidates(line if line.split()[1:2] == [verb] else f"launch {verb} {line.partition(' ')[2]}")))
        return True
    return False
