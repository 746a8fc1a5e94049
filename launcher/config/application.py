"""What Hydra is told about itself: our help page, and that it writes nothing. Plain data, so that Hydra's door stays in load.py."""

from __future__ import annotations

from typing import Any

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


def hydra_nodes(verb: str, scratch: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Choices for Hydra's own groups, by (group, name, package).

    `scratch`: a folder that the caller removes; Hydra's sweeper insists on leaving a file.
    """
    quiet = {"version": 1, "root": {"level": "WARNING", "handlers": ["console"]}, "disable_existing_loggers": False}
    handler = {"class": "logging.StreamHandler", "formatter": "simple", "stream": "ext://sys.stderr"}
    formatter = {"simple": {"format": "%(name)s: %(message)s"}}
    return {
        ("hydra/output", "launcher", "hydra"): {"run": {"dir": "."}, "sweep": {"dir": scratch, "subdir": "."}},
        ("hydra/hydra_logging", "launcher", "hydra.hydra_logging"): {**quiet, "formatters": formatter, "handlers": {"console": handler}},
        ("hydra/help", "launcher", "hydra.help"): {
            "app_name": verb,
            "header": HEADERS.get(verb, ""),
            "footer": "Docs: docs/configuration.md. A configs/ folder where you work is searched first.",
            "template": HELP,
        },
    }


HYDRA_CHOICES = {"output": "launcher", "hydra_logging": "launcher", "help": "launcher", "job_logging": "none"}
