"""What is said of a worker's end, from what the kernel, the process itself and Ray tell."""

from __future__ import annotations

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import WorkerId
from launcher.record import events as r
from launcher.record.status import JobState
from launcher.runtime.controller.deaths import PATIENCE_S, Deaths, cause_of_death, last_lines
from launcher.runtime.controller.inbox import DeathExplained, LinePrinted
from launcher.runtime.protocol import events as e
from launcher.runtime.transport.server import Disconnected
from launcher.runtime.worker.exit_watcher import MARK
from tests.unit.runtime.controller.harness import A, B, Harness

pytestmark = pytest.mark.unit
UNTOLD = "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
SEGFAULT = (
    "loading",
    "*** SIGSEGV received at time=1795631442 on cpu 0 ***",
    "PC: @     0x7f0bb0774219  (unknown)  (unknown)",
    "    @     0x7f0bb065a050  (unknown)  (unknown)",
    "[2026-01-01 10:00:00,603 E 18940 19153] logging.cc:474: *** SIGSEGV received at time=1795631442 on cpu 0 ***",
    "[2026-01-01 10:00:00,608 E 18940 19153] logging.cc:474:     @     0x7f0bb065a050  (unknown)  (unknown)",
    "Fatal Python error: Segmentation fault",
    "Stack (most recent call first):",
    '  File "net.py", line 3 in forward',
    "Extension modules: numpy._core._multiarray_umath (total: 1)",
)
ABORT = ("terminate called after throwing an instance of 'std::runtime_error'", "  what():  no tensor", "Fatal Python error: Aborted")


@pytest.mark.parametrize(
    ("code", "lines", "ray", "words"),
    [
        (-11, SEGFAULT, "", "SIGSEGV (Segmentation fault)"),
        (-6, ABORT, "", "SIGABRT (Aborted)"),
        (-9, (), "", "SIGKILL, as the kernel sends for want of memory, or somebody by kill -9"),
        (
            -9,
            (),
            "the node was low on memory",
            "SIGKILL, as the kernel sends for want of memory, or somebody by kill -9; Ray: the node was",
        ),
        (-40, (), "", "signal 40"),
        (0, ("bye",), "", "exit code 0, by no exception"),
        (3, (), "", "exit code 3, by no exception"),
        (None, SEGFAULT, "", "a fatal error: Segmentation fault"),
        (None, ("bye",), "", "it ended without a word, as by SIGKILL or os._exit()"),
        (None, (), "its node has died", "it ended without a word; Ray: its node has died"),
    ],
)
def test_the_cause_is_the_most_certain_thing_that_is_known(code: int | None, lines: tuple[str, ...], ray: str, words: str) -> None:
    assert cause_of_death(code, lines, ray).startswith(words)


def test_the_last_lines_are_those_that_tell() -> None:
    assert last_lines([*(f"line {number}" for number in range(20))]) == tuple(f"line {number}" for number in range(14, 20))
    assert last_lines([*ABORT, "Extension modules: numpy (total: 1)"]) == ABORT
    assert last_lines(["b", *SEGFAULT]) == ("b", "loading", "Fatal Python error: Segmentation fault", '  File "net.py", line 3 in forward')
    assert len(last_lines([*SEGFAULT, *["  File"] * 30])) == 6
    assert last_lines([]) == ()


def test_a_death_is_told_once_with_all_that_came_until_the_kernel_told() -> None:
    deaths = Deaths()
    assert deaths.printed(A, "last words")
    deaths.lost(A, 0, 7, "host", 10.0)
    assert list(deaths.look(10.1)) == []
    assert deaths.pending
    assert not deaths.printed(A, f"{MARK}-11")
    [died] = deaths.look(10.2)
    assert died == r.WorkerDied(worker=A, rank=0, pid=7, node="host", detail="SIGSEGV (Segmentation fault)", last_lines=("last words",))
    assert not deaths.pending
    assert list(deaths.look(99.0)) == []


def test_where_the_kernel_does_not_tell_it_is_waited_for_a_while_only() -> None:
    deaths = Deaths()
    deaths.lost(A, None, 7, "host", 10.0)
    deaths.ray_said(A, UNTOLD)
    assert list(deaths.look(10.0 + PATIENCE_S - 0.1)) == []
    [died] = deaths.look(10.0 + PATIENCE_S)
    assert died.detail == "it ended without a word, as by SIGKILL or os._exit()"


def test_one_that_lives_has_not_died() -> None:
    deaths = Deaths()
    deaths.lost(A, 0, 7, "host", 10.0)
    deaths.ray_said(A, "")
    assert not deaths.pending
    assert list(deaths.look(99.0)) == []


def test_a_reason_that_names_the_dead_one_is_explained() -> None:
    deaths = Deaths()
    reason = f"worker {A} (rank 0, pid 7 on host) died: its connection ended; workers were lost 4 times\n  more"
    assert deaths.explained(reason) == reason
    deaths.printed(A, "last words")
    deaths.printed(A, f"{MARK}3")
    deaths.lost(A, 0, 7, "host", 10.0)
    [died] = deaths.look(10.0)
    wanted = f"worker {A} (rank 0, pid 7 on host) died: {died.detail}; workers were lost 4 times\nits last lines:\n  last words\n  more"
    assert deaths.explained(reason) == wanted
    assert deaths.explained("worker w11 (rank 0) died: its connection ended") == "worker w11 (rank 0) died: its connection ended"


def lose(harness: Harness, worker: WorkerId, code: int, *lines: str) -> None:
    """It prints, and its process ends."""
    for line in lines:
        harness.inbox.put(LinePrinted(worker, "stderr", line))
    harness.controller.handle(Disconnected(worker))
    harness.inbox.put(LinePrinted(worker, "stderr", f"{MARK}{code}"))
    harness.tick_after(0.2)


def test_the_controller_records_how_a_lost_worker_ended_and_keeps_the_mark_out_of_the_logs(harness: Harness) -> None:
    harness.training(2)
    lose(harness, B, -11, "the last word")
    lost, died = (event for event in harness.events() if isinstance(event, (r.WorkerLost, r.WorkerDied)))
    assert isinstance(lost, r.WorkerLost)
    assert isinstance(died, r.WorkerDied)
    assert (died.worker, died.rank, died.pid, died.node) == (B, 1, 101, "host-w1")
    assert died.last_lines == ("the last word",)
    harness.recorder.flush(ledger=True)
    logs = [line for name in harness.run.names("logs") for line in harness.run.segment("logs", name)]
    assert [line["line"] for line in logs] == ["the last word"]


def test_the_end_of_a_run_that_rests_on_a_death_says_how_it_came(harness: Harness) -> None:
    harness.training(1)
    reason = f"worker {A} (rank 0, pid 100 on host-w0) died: its connection ended"
    lose(harness, A, 3, "the last word")
    harness.controller.process([e.Failed(reason, ExitCode.JOB_FAILED)])
    harness.inbox.put(DeathExplained(A, "ray.kill"))
    harness.controller.write_end()
    status = harness.shown[-1]
    assert status.state is JobState.FAILED
    assert "died: exit code 3" in status.reason
    assert "its last lines:\n  the last word" in status.reason
