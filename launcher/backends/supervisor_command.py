"""How a run's supervisor is started on a Ray cluster, where it is the entrypoint of a job."""

from __future__ import annotations

import shlex

STATE_FOLDER = "/tmp/launcher"
"""On each machine of the cluster, for what is made again where it is missing: unpacked code, installed packages."""


def supervisor_command(runs: str, run_id: str, *of_controller: str) -> str:
    """A line for a shell; `of_controller` are further arguments of the controllers that the supervisor starts."""
    arguments = ["--runs", runs, "--run-id", run_id, "--state", STATE_FOLDER, "--ray", "auto"]
    return shlex.join(["python", "-m", "launcher.runtime.supervisor", *arguments, *of_controller])
