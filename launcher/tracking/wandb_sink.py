"""W&B's own process: `python -m launcher.tracking.wandb_sink`. The only module that imports wandb.

Reads messages (launcher/tracking/wandb_messages.py) on standard input and answers on standard output. Input that ends
without `finish` means that the job's controller died: the run is closed as crashed, and a later `start` with the same
run_id continues it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from launcher.tracking.wandb_messages import Answer, Metrics, Start, read_message, to_line

INIT_TIMEOUT_S = 30
ORPHAN_TIMEOUT_S = 60.0
"""Seconds that the process has, after its controller died, to pass on what it holds; then it ends even if W&B hangs."""


def serve(lines: Iterable[str], answers: TextIO) -> None:
    """Follow the job's messages to their end."""

    def answer(said: Answer) -> None:
        answers.write(to_line(said))
        answers.flush()

    run: Any = None
    exit_code = 1
    for message in map(read_message, lines):
        if isinstance(message, Start):
            run = start(message, answer)
        elif isinstance(message, Metrics):
            run.log({**message.values, "step": message.step})
        else:
            exit_code = message.exit_code
            break
    else:
        _end_after(ORPHAN_TIMEOUT_S)
    if run is not None:
        run.finish(exit_code=exit_code)
    answer(Answer(state="finished"))


def start(message: Start, answer: Callable[[Answer], None]) -> Any:
    """A W&B run that continues an earlier one of the same id. Offline where W&B cannot be reached, and says so."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    os.makedirs(message.folder, exist_ok=True)
    run, why = None, ""
    if message.mode != "offline":
        try:
            if message.mode == "online" or wandb.login(prompt=False):
                run = _init(wandb, message, "online")
            else:
                why = "no key was found (WANDB_API_KEY, or `wandb login`); "
        except Exception as error:  # noqa: BLE001  whatever W&B raises, what the job tells must be kept
            why = f"going online failed ({_first_line(error)}); "
    mode = "offline" if run is None else "online"
    run = run or _init(wandb, message, mode)
    # W&B refuses a step lower than its last; with a step of our own, a run that goes on at an older checkpoint still shows.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    where = os.path.dirname(run.dir)
    if mode == "online":
        answer(Answer(state="started", mode=mode, folder=where, url=run.url, message=f"W&B: {run.url}"))
    else:
        answer(Answer(state="started", mode=mode, folder=where, message=f"W&B: {why}recording offline; `wandb sync {where}` sends it"))
    return run


def _init(wandb: Any, message: Start, mode: str) -> Any:
    settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, console="off", silent=True, disable_git=True, save_code=False)
    return wandb.init(
        id=message.run_id,
        name=message.name,
        project=message.project,
        entity=message.entity,
        config=message.config,
        dir=message.folder,
        mode=mode,
        resume="allow" if mode == "online" else None,
        allow_val_change=True,
        settings=settings,
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text).splitlines()[0][:200]


def _end_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def main() -> int:
    """Serve standard input to its end; the exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what W&B prints must not look like an answer
    try:
        serve(sys.stdin, answers)
    except Exception as error:  # noqa: BLE001  said to the job as one sentence; it is not the job's failure
        answers.write(to_line(Answer(state="failed", message=f"W&B failed, the job goes on without it: {_first_line(error)}")))
        answers.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
