"""The command that starts a run's supervisor on a Ray cluster, where it is the entrypoint of a Ray job."""

from __future__ import annotations

import shlex

STATE_FOLDER = "/tmp/launcher"
"""On each machine of the cluster; holds unpacked code and installed packages, which are made again where they are missing."""


def supervisor_command(runs: str, run_id: str, *of_controller: str) -> str:
    """One line for a shell. `runs`: the run store as the cluster reaches it; `of_controller`: further arguments of its controllers."""
    arguments = ["--runs", runs, "--run-id", run_id, "--state", STATE_FOLDER, "--ray", "auto"]
    return shlex.join(["python", "-m", "launcher.runtime.supervisor", *arguments, *of_controller])
