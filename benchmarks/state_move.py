"""Moving a training state to a newcomer against the raw time to copy as many bytes: `python -m benchmarks.state_move`.

Two processes, one of which holds a model and its momentum. Ours is `share_state` to a newcomer that has warmed up, from the moment
at which both are ready until both know that it is over: pieces, digests, header, loading. The peer is the same Gloo group sending one block of
memory of that size in pieces of 8 MiB, four under way, all of it touched before; it checks nothing.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.port_store import PortStore
from benchmarks.report import Bar, against_itself, compare, finish
from benchmarks.sandbox import in_turn

PEER = "raw Gloo copy, 8 MiB blocks"
BLOCK_BYTES = 8 << 20
UNDER_WAY = 4
HANG_S = 120.0
WARM_UP = 2
"""Rounds that are not counted."""
DONOR, RECEIVER = 0, 1
NARROW = 64


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state_move", description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="size of parameters and momentum, in 10^6 bytes (default 1000)")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of measurements (default 7)")
    parser.add_argument("--behind", action="store_true", help="to a worker that keeps its own state until the other has arrived")
    parser.add_argument("--output", type=Path, help="write the JSON into this file as well")
    options = parser.parse_args(arguments)
    name = f"share_state of {options.mb} MB" + (" to a worker that is behind" if options.behind else "")
    found = measure(options.mb, options.pairs, options.behind)
    figures = [compare(name, "s", found["ours"], PEER, found["raw"], Bar(1.3, "at_most"), more_is_better=False)]
    same = against_itself(f"copy of {options.mb} MB", "s", PEER, found["raw"], more_is_better=False)
    settings = {
        "benchmark": "state_move",
        "mb": options.mb,
        "pairs": options.pairs,
        "behind": options.behind,
        "blocks_under_way": UNDER_WAY,
        "warm_up": WARM_UP,
    }
    return finish([*figures, *([same] if same else [])], settings, options.output)


def measure(mb: int, pairs: int, behind: bool) -> dict[str, list[float]]:
    """Seconds as the receiver felt them."""
    import torch.distributed as dist

    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, server.port, mb, pairs, behind, answers), daemon=True) for rank in (DONOR, RECEIVER)]
    try:
        for process in ranks:
            process.start()
        found: dict[str, list[float]] = answers.get(timeout=HANG_S + pairs * mb / 10)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return found


def _rank(rank: int, port: int, mb: int, pairs: int, behind: bool, answers: Any) -> None:
    import torch

    from launcher.training.comm.collective import Collective

    torch.set_num_threads(1)
    collective = Collective.form(PortStore(port, patience_s=HANG_S), generation=1, rank=rank, world_size=2, device="cpu", timeout_s=HANG_S)
    flag = torch.ones(1)
    block = torch.ones(mb * 10**6, dtype=torch.uint8)

    def timed(prepare: Callable[[], Any], act: Callable[[Any], None]) -> Callable[[], float]:
        def once() -> float:
            prepared = prepare()
            collective.all_reduce(flag).wait()
            start = time.perf_counter()
            act(prepared)
            collective.all_reduce(flag).wait()
            return time.perf_counter() - start

        return once

    def copy(_: None) -> None:
        works = []
        for offset in range(0, len(block), BLOCK_BYTES):
            part = block[offset : offset + BLOCK_BYTES]
            works.append(collective.send(part, RECEIVER) if rank == DONOR else collective.recv(part, DONOR))
            if len(works) >= UNDER_WAY:
                works.pop(0).wait()
        for work in works:
            work.wait()

    held = _state(mb, steps=1) if rank == DONOR or behind else None

    def newcomer() -> Any:
        if held is not None:
            return held
        state = _state(mb, steps=0)
        state.prepare_to_receive()
        return state

    def share(state: Any) -> None:
        from launcher.training.state.transfer import StateHeader, StateMove, share_state

        share_state(collective, StateMove((DONOR,), (RECEIVER,)), state, StateHeader(state.document(1), {}), device="cpu", holds_own=behind)

    measures = {"raw": timed(lambda: None, copy), "ours": timed(newcomer, share)}
    in_turn(WARM_UP, measures, lambda text: None)
    found = in_turn(pairs, measures, lambda text: print(text, file=sys.stderr, flush=True) if rank == RECEIVER else None)
    if rank == RECEIVER:
        answers.put(found)
    time.sleep(HANG_S)  # until it is ended: the other may still be in its last collective call


def _state(mb: int, *, steps: int) -> Any:
    """ResNet-18, as wide as it has to be for `mb` megabytes with its momentum."""
    import torch

    from launcher.config.schema import Component
    from launcher.training.state.train_state import TrainState
    from models.resnet import ResNet

    with torch.device("meta"):
        narrow = sum(parameter.numel() for parameter in ResNet(depth=18, width=NARROW).parameters())
    model = ResNet(depth=18, width=round(NARROW * math.sqrt(mb * 10**6 / (8 * narrow))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    optimizer.zero_grad()
    choice = Component(target="torch.optim.SGD", params={"lr": 0.1, "momentum": 0.9})
    return TrainState(model, optimizer, None, choice, None)


if __name__ == "__main__":
    sys.exit(main())
