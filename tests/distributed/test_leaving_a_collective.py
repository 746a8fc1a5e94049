"""The process layout stands on this: every survivor is out of a collective within 0.5 s of the order to leave it,
also the rank that is not a neighbour of the one that was lost, whether that one was killed or frozen."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

import pytest
import torch

from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from tests.distributed.ranks import HANG_S, Rank, SharedStore, processes, run_ranks, store_server

pytestmark = pytest.mark.distributed

RANKS = 4
VICTIM = 2
OUT_WITHIN_S = 0.5
ATTEMPTS = 3  # the machine may be busy with something else at the moment that is measured


def reduce_until_broken(rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    collective = Collective(generation=1, rank=rank, world_size=RANKS, device="cpu", timeout_s=HANG_S)

    def leave_on_order() -> None:
        SharedStore(port).get("order", HANG_S)
        collective.leave()

    threading.Thread(target=leave_on_order, daemon=True).start()
    collective.connect(SharedStore(port))
    gradients = torch.ones(2_000_000)
    answers.put((rank, 0.0))
    try:
        while True:
            collective.all_reduce(gradients).wait()
    except CollectiveBroken:
        answers.put((rank, time.monotonic()))
    time.sleep(HANG_S)  # the process stays: it is the call that has to end, not the rank


def slowest_exit_s(fault: signal.Signals) -> float:
    answers = processes.Queue()
    with store_server() as port:
        ranks = [processes.Process(target=reduce_until_broken, args=(rank, port, answers), daemon=True) for rank in range(RANKS)]
        for rank in ranks:
            rank.start()
        try:
            for _ in ranks:
                answers.get(timeout=HANG_S)
            time.sleep(0.3)
            assert ranks[VICTIM].pid is not None
            os.kill(ranks[VICTIM].pid, fault)
            time.sleep(0.7)  # long enough for everybody to be blocked, or out by itself
            order = SharedStore(port)
            ordered_at = time.monotonic()
            order.set("order", b"leave")
            left = dict(answers.get(timeout=HANG_S) for _ in range(RANKS - 1))
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
    assert set(left) == {0, 1, 3}
    return max(at - ordered_at for at in left.values())


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_every_survivor_is_out_within_half_a_second_of_the_order(fault: signal.Signals) -> None:
    measured = []
    while len(measured) < ATTEMPTS and (not measured or min(measured) > OUT_WITHIN_S):
        measured.append(slowest_exit_s(fault))
    assert min(measured) <= OUT_WITHIN_S, f"seconds from the order to the last exit: {measured}"


def leave_and_form_again(me: Rank) -> tuple[bool, float, bool]:
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    first = Collective.form(SharedStore(me.port, "1/"), generation=1, rank=me.rank, world_size=2, device="cpu", timeout_s=HANG_S)
    first.all_reduce(torch.ones(1)).wait()  # both have formed it
    first.leave()
    first.leave()
    broken = False
    try:
        first.all_reduce(torch.ones(1)).wait()
    except CollectiveBroken:
        broken = True
    second = Collective.form(SharedStore(me.port, "2/"), generation=2, rank=me.rank, world_size=2, device="cpu", timeout_s=HANG_S)
    first.leave()  # late: the next generation has nothing to do with it
    total = torch.ones(3)
    second.all_reduce(total).wait()
    ours.sendall(b"alive")
    return broken, float(total[0]), theirs.recv(5) == b"alive"


def test_leaving_touches_nothing_but_its_own_generation() -> None:
    assert run_ranks(2, leave_and_form_again) == [(True, 2.0, True)] * 2


def form_with_one_that_freezes(me: Rank, mode: str) -> float:
    """Rank 1 publishes its listener, then is never heard of again; rank 0 is told to leave while it forms the group."""
    store = SharedStore(me.port)
    if me.rank == 1:
        silent = socket.create_server(("127.0.0.1", 0))
        if mode == "connecting":
            store.set("listener/1", b'["127.0.0.1", %d]' % silent.getsockname()[1])
        store.get("done", HANG_S)
        return 0.0
    collective = Collective(generation=1, rank=0, world_size=2, device="cpu", timeout_s=HANG_S)
    ordered_at = [0.0]

    def leave() -> None:
        ordered_at[0] = time.monotonic()
        collective.leave()

    timer = threading.Timer(0.5, leave)
    timer.start()
    with pytest.raises(CollectiveBroken):
        collective.connect(store)
    took = time.monotonic() - ordered_at[0] if ordered_at[0] else 0.0
    timer.cancel()
    store.set("done", b"")
    return took


@pytest.mark.parametrize("mode", ["meeting", "connecting"])
def test_a_group_that_cannot_be_formed_is_given_up(mode: str) -> None:
    assert max(run_ranks(2, form_with_one_that_freezes, mode)) < HANG_S
