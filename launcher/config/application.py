"""Hydra run as an application of ours: its flags, its help page, and the state of the process that it changes and gives back."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import version
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf, JobConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

from launcher.config import diagnosis

VERSION_BASE = "1.3"
HELP = """\
launch ${hydra.job.name}: ${hydra.help.header}

  launch ${hydra.job.name} model=resnet workers=2 trainer.epochs=5
  launch ${hydra.job.name} -m optimizer.lr=0.1,0.01

Options of launch, before or after the overrides
  -d, --detach        train: return when the job is recorded and started
  -o, --output FORM   text (default) or json
Every flag of Hydra works too (launch ${hydra.job.name} --hydra-help), for example
  --cfg job           print the configuration and do nothing (--resolve, --package KEY)
  -m, --multirun      one job for each combination of the values given
  --config-dir DIR    search one more folder of configurations
  --info searchpath   the folders that are searched

Groups (group=choice)
$APP_CONFIG_GROUPS
Configuration (key=value)
$CONFIG
${hydra.help.footer}
"""
HEADERS = {
    "train": "train a model, as a job that can be left, watched, stopped and resumed",
    "plan": "show what `launch train` with the same words would submit; touches nothing",
    "doctor": "check that a job with the same words could run, and say how to mend what could keep it from it",
}
HYDRA_CHOICES = {"output": "launcher", "hydra_logging": "launcher", "help": "launcher", "job_logging": "none"}
"""What is chosen in Hydra's own groups; the choices called launcher are those of `_hydra_nodes`."""


@dataclass(frozen=True)
class Flags:
    """What Hydra reads from a command line, as far as launcher looks at it."""

    overrides: list[str]
    main: Path | None
    """--config-path, absolute: the folder that is searched instead of configs/."""
    added: Path | None
    """--config-dir, absolute: one more folder, searched first."""
    config_name: str | None
    hydra_help: bool
    arguments: list[str]
    """The command line without its overrides, as Hydra is to be given it."""


def read_flags(arguments: Sequence[str], folder: Path) -> Flags | None:
    """Hydra's own reading of a command line typed in `folder`, with flags and overrides in any order.

    None where Hydra has answered already (--version). Raises ConfigError for flags that it does not know.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read = get_args_parser().parse_intermixed_args(list(arguments))
    except SystemExit as stop:
        if not stop.code:
            return None
        raise diagnosis.bad_flags(said.getvalue().strip().rpartition("error: ")[2]) from None
    main, added = _absolute(read.config_path, folder), _absolute(read.config_dir, folder)
    rest = _without(arguments, read.overrides)
    if main is not None:
        rest += ["--config-path", str(main)]
    return Flags(read.overrides, main, added, read.config_name, bool(read.hydra_help), rest)


def _absolute(path: str | None, folder: Path) -> Path | None:
    return folder.absolute() / path if path and "://" not in path else None


def _without(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The flags of a command line; equal words are interchangeable, so the first of them may go."""
    rest = [argument for argument in arguments if argument != "--"]
    for override in overrides:
        rest.remove(override)
    return rest


def run_hydra(arguments: Sequence[str], application: Callable[[], object]) -> None:
    """Run `application` with this command line. What it raises comes out and is not printed; Hydra's globals are as before afterwards.

    Hydra takes the command line from sys.argv, and from HYDRA_FULL_ERROR whether to raise. Raises ConfigError where it only prints what
    is wrong with the command line.
    """
    said = io.StringIO()
    before, sys.argv = sys.argv, ["launch", *arguments]
    hydra_before, root = HydraConfig.instance().cfg, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with contextlib.redirect_stderr(said):
            application()
    except SystemExit as stop:
        if stop.code:
            raise diagnosis.bad_flags(said.getvalue().strip()) from None
    finally:
        sys.argv = before
        HydraConfig.instance().cfg = hydra_before
        root.handlers[:] = handlers
        root.setLevel(level)
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
    sys.stderr.write(said.getvalue())


@contextlib.contextmanager
def version_base() -> Iterator[None]:
    """Hydra 1.3's behaviour, and afterwards whatever the process had chosen."""
    before = version.VersionBase.instance().version_base
    version.setbase(VERSION_BASE)
    try:
        yield
    finally:
        version.VersionBase.instance().version_base = before


@contextlib.contextmanager
def hydra_settings(verb: str) -> Iterator[None]:
    """Hydra's own configuration with our help page and quiet logs. Hydra's sweeper insists on leaving a file; it goes to a folder that is
    removed at the end."""
    store = ConfigStore.instance()
    original = store.repo["hydra"]["config.yaml"]
    choices = [{group: HYDRA_CHOICES.get(group, choice)} for item in HydraConf().defaults for group, choice in item.items()]
    store.store(group="hydra", name="config", node=HydraConf(defaults=choices, output_subdir=None, job=JobConf(name=verb)))
    with tempfile.TemporaryDirectory(prefix="launcher-") as scratch:
        for (group, package), node in _hydra_nodes(verb, scratch).items():
            store.store(group=group, name="launcher", package=package, node=node, provider="launcher")
        try:
            yield
        finally:
            store.repo["hydra"]["config.yaml"] = original


def _hydra_nodes(verb: str, scratch: str) -> dict[tuple[str, str], dict[str, object]]:
    """Our choices for Hydra's own groups, by (group, package)."""
    return {
        ("hydra/output", "hydra"): {"run": {"dir": "."}, "sweep": {"dir": scratch, "subdir": "."}},
        ("hydra/hydra_logging", "hydra.hydra_logging"): {
            "version": 1,
            "root": {"level": "WARNING", "handlers": ["console"]},
            "disable_existing_loggers": False,
            "formatters": {"simple": {"format": "%(name)s: %(message)s"}},
            "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "simple", "stream": "ext://sys.stderr"}},
        },
        ("hydra/help", "hydra.help"): {
            "app_name": verb,
            "header": HEADERS.get(verb, ""),
            "footer": "Docs: docs/configuration.md. A configs/ folder where you work is searched first.",
            "template": HELP,
        },
    }
