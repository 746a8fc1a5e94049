"""The training engine alone, as many ranks as asked for: no Ray, no controller, no connection to one, no policies, no records.

Prints [seconds since 1970, steps done] every so many steps, one JSON list a line, from rank 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.quiet_observer import QuietObserver
from benchmarks.port_store import PortStore


class Points(QuietObserver):
    """An observer that only prints."""

    def __init__(self, rank: int, every: int) -> None:
        self._rank, self._every = rank, every

    def applied(self, record: Any) -> None:
        if self._rank == 0 and record.step % self._every == 0:
            print(json.dumps([time.time(), record.step]), flush=True)


def train(config: str, rank: int, world_size: int, port: int, threads: int, every: int) -> None:
    import torch  # noqa: F401 - before the clock of the first step

    from launcher.config.parse import parse_config
    from launcher.core.store import open_store
    from launcher.core.types import RunId
    from launcher.record.run_store import RunStore
    from launcher.training.comm.collective import Collective
    from launcher.training.state.transfer import StateMove
    from launcher.training.trainer import Trainer

    store = PortStore(port, serves=rank == 0)
    collective = Collective.form(store, generation=1, rank=rank, world_size=world_size, device="cpu", timeout_s=600.0)
    with tempfile.TemporaryDirectory() as folder:
        observer: Any = Points(rank, every)
        trainer = Trainer(
            parse_config(json.loads(config)), RunStore(open_store(folder), RunId("engine")), observer, device="cpu", threads=threads
        )
        trainer.build()
        trainer.warm_up()
        trainer.share(collective, StateMove((0,), tuple(range(1, world_size))), {}, holds_own=False)
        trainer.run(collective)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--width", type=int, required=True, help="samples in a forward pass: the configuration's own")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--log-every", type=int, required=True)
    given = parser.parse_args()
    document = json.loads(Path(given.config).read_text())
    config = json.dumps({**document, "trainer": {**document["trainer"], "steps": given.steps}})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=train, args=(config, rank, given.workers, port, given.threads, given.log_every), daemon=True)
        for rank in range(given.workers)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(process.exitcode or 0 for process in ranks))


if __name__ == "__main__":
    main()
