"""The state of the run as people see it, and how long it may be without a generation at work."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Step
from launcher.record.status import JobState
from launcher.runtime.controller.run_state import CapacityDeadline, describe, trains
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol.coordinator import Coordinator
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.protocol.group import Group
from tests.unit.runtime.controller.harness import G1, G2, A, B, C

pytestmark = pytest.mark.unit
FORMING = "a new generation of workers is being formed"
HELD = "2 of at least 3 workers are left; the state is saved and held"


def after(*events: e.Event, minimum: int = 1) -> Group:
    """The group of a new run, after these."""
    coordinator = Coordinator(minimum=minimum, load=False)
    for event in (e.Started(A), e.Ready(A), e.Started(B), e.Ready(B), *events):
        coordinator.handle(event)
    return coordinator.group


START = (
    e.ChangeWanted(join=(A, B)),
    *(e.Prepared(worker, G1) for worker in (A, B)),
    *(e.Formed(worker, G1, Step(0)) for worker in (A, B)),
)
PREPARED = (*START, e.Started(C), e.Ready(C), e.ChangeWanted(join=(C,)))
COMMITTED = (*PREPARED, *(e.Prepared(worker, G2) for worker in (A, B, C)))
LEAVING = (*START, e.Gone(B, "it died"))
REFORMING = (*LEAVING, e.Left(A, G1, Step(3)))
WAITING = (*START, *(e.Ended(worker, G1, Outcome.HELD) for worker in (A, B)))


@pytest.mark.parametrize(
    ("events", "minimum", "at_work", "state", "reason", "reason_while_capacity_is_missing"),
    [
        pytest.param((), 1, False, JobState.STARTING, "workers start", "waits for 1 GPU", id="assembling"),
        pytest.param(START[:1], 1, False, JobState.STARTING, "workers start", "waits for 1 GPU", id="the first is prepared"),
        pytest.param(START, 1, True, JobState.RUNNING, "", "", id="training"),
        pytest.param(PREPARED, 1, True, JobState.RUNNING, "", "", id="training while a change is prepared"),
        pytest.param(COMMITTED, 1, False, JobState.RESIZING, FORMING, FORMING, id="a change is committed"),
        pytest.param(LEAVING, 1, False, JobState.RESIZING, FORMING, FORMING, id="leaving"),
        pytest.param(REFORMING, 1, False, JobState.RESIZING, FORMING, FORMING, id="the survivors form the next"),
        pytest.param(WAITING, 3, False, JobState.RESIZING, HELD, f"{HELD}; waits for 1 GPU", id="held"),
        pytest.param((*START, e.StopWanted()), 1, True, JobState.STOPPING, "asked to stop", "asked to stop", id="stopping"),
    ],
)
def test_the_state_of_a_run(
    events: Iterable[e.Event],
    minimum: int,
    state: JobState,
    reason: str,
    reason_while_capacity_is_missing: str,
    *,
    at_work: bool,
) -> None:
    group = after(*events, minimum=minimum)
    assert trains(group) is at_work
    assert describe(group, "") == (state, reason)
    assert describe(group, "1 GPU") == (state, reason_while_capacity_is_missing)


def test_a_run_fails_when_nothing_was_at_work_for_too_long() -> None:
    deadline, group = CapacityDeadline(30.0), after()
    looks = [deadline.look(group, waiting_for, now, warming=False) for waiting_for, now in (("", 100.0), ("", 130.0), ("1 GPU", 130.1))]
    why = "no capacity within 30 s (elastic.capacity_timeout_s): waits for 1 GPU"
    assert looks == [None, None, e.Failed(why, ExitCode.INFRASTRUCTURE)]
    failed = deadline.look(group, "", 131.0, warming=False)
    assert failed is not None
    assert failed.reason.endswith("the workers that are left form no generation")


@pytest.mark.parametrize(
    ("events", "warming"),
    [
        pytest.param(START, False, id="a generation trains"),
        pytest.param((), True, id="a worker has its place"),
        pytest.param((e.Failed("why", ExitCode.JOB_FAILED),), False, id="it has ended"),
    ],
)
def test_the_time_begins_anew_after(events: Iterable[e.Event], *, warming: bool) -> None:
    deadline, idle = CapacityDeadline(30.0), after()
    assert deadline.look(idle, "", 0.0, warming=False) is None
    assert deadline.look(after(*events), "", 31.0, warming=warming) is None
    assert deadline.look(idle, "", 32.0, warming=False) is None
    assert deadline.look(idle, "", 62.0, warming=False) is None
    assert deadline.look(idle, "", 62.1, warming=False) is not None
