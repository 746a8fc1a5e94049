"""W&B's own process: `python -m launcher.tracking.wandb_sink`. The only module that imports wandb.

Reads JSON lines on standard input:
    {"kind": "start", "run_id", "name", "project", "entity", "mode", "folder", "config"}
    {"kind": "metrics", "step", "values": {name: number}}
    {"kind": "finish", "exit_code"}
and answers with JSON lines on standard output: {"state": "started" | "failed" | "finished", "message", ...}.
Input that ends without `finish` means that the job's controller died: the run is closed as crashed, and a later
`start` with the same run_id continues it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any, TextIO

INIT_TIMEOUT_S = 30
ORPHAN_TIMEOUT_S = 60.0
"""After its controller's death the process hands over what it has, and then is gone, even if W&B hangs."""


def serve(lines: Iterable[str], answers: TextIO) -> None:
    """Follow the job's messages to their end."""

    def answer(**facts: object) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    run: Any = None
    exit_code = 1
    for line in lines:
        message = json.loads(line)
        if message["kind"] == "start":
            run = start(message, answer)
        elif message["kind"] == "metrics":
            run.log({**message["values"], "step": message["step"]})
        elif message["kind"] == "finish":
            exit_code = message["exit_code"]
            break
    else:
        _end_after(ORPHAN_TIMEOUT_S)
    if run is not None:
        run.finish(exit_code=exit_code)
    answer(state="finished")


def start(message: dict[str, Any], answer: Any) -> Any:
    """A W&B run that continues an earlier one of the same id. Offline where W&B cannot be reached, and says so."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    os.makedirs(message["folder"], exist_ok=True)
    run, why = None, ""
    if message["mode"] != "offline":
        try:
            if message["mode"] == "online" or wandb.login(prompt=False):
                run = _init(wandb, message, "online")
            else:
                why = "no key was found (WANDB_API_KEY, or `wandb login`); "
        except Exception as error:  # noqa: BLE001  whatever W&B raises, what the job tells must be kept
            why = f"it could not be reached ({_first_line(error)}); "
    mode = "offline" if run is None else "online"
    run = run or _init(wandb, message, mode)
    # W&B refuses a step lower than its last; with a step of our own, a run that goes on at an older checkpoint still shows.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    where = os.path.dirname(run.dir)
    if mode == "online":
        answer(state="started", mode=mode, folder=where, url=run.url, message=f"W&B: {run.url}")
    else:
        answer(state="started", mode=mode, folder=where, message=f"W&B: {why}recording offline; `wandb sync {where}` sends it")
    return run


def _init(wandb: Any, message: dict[str, Any], mode: str) -> Any:
    settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", silent=True, disable_git=True, save_code=False)
    return wandb.init(
        id=message["run_id"],
        name=message["name"],
        project=message["project"],
        entity=message["entity"],
        config=message["config"],
        dir=message["folder"],
        mode=mode,
        resume="allow" if mode == "online" else None,
        allow_val_change=True,
        settings=settings,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _end_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what W&B prints must not look like an answer
    try:
        serve(sys.stdin, answers)
    except Exception as error:  # noqa: BLE001  said to the job as one sentence; it is not the job's failure
        answers.write(json.dumps({"state": "failed", "message": f"W&B failed, the job goes on without it: {_first_line(error)}"}) + "\n")
        answers.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
