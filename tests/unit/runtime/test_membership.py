"""The worker group's life, event by event."""

from __future__ import annotations

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Step, WorkerId
from launcher.runtime import membership as m
from launcher.spec.status import STATES, JobState

pytestmark = pytest.mark.unit
A, B = WorkerId("w0"), WorkerId("w1")


def play(group: m.Group, *events: m.Event) -> tuple[m.Group, list[m.Action]]:
    actions: list[m.Action] = []
    for event in events:
        group, more = m.decide(group, event)
        actions += more
    return group, actions


def training(workers: int = 2) -> m.Group:
    names = [A, B][:workers]
    group, _ = play(m.assemble(names, checkpoint=None, load=False), *(m.Ready(name) for name in names))
    return group


def test_a_generation_is_formed_when_all_are_ready() -> None:
    group = m.assemble([A, B], checkpoint=None, load=False)
    group, actions = play(group, m.Ready(A))
    assert actions == []
    group, actions = play(group, m.Ready(B))
    assert actions == [m.Form(m.Generation(1))]
    assert group.phase is m.Phase.TRAINING
    assert [member.rank for member in group.members.values()] == [0, 1]


def test_a_checkpoint_is_loaded_by_all_before_the_generation_is_formed() -> None:
    group = m.assemble([A, B], checkpoint=Step(40), load=True)
    group, actions = play(group, m.Ready(A), m.Ready(B))
    assert actions == [m.Load()]
    group, actions = play(group, m.Loaded(A, Step(40)))
    assert actions == []
    group, actions = play(group, m.Loaded(B, Step(40)))
    assert actions == [m.Form(m.Generation(1))]
    assert group.committed == 40


def test_a_corrupt_checkpoint_rolls_back() -> None:
    group, _ = play(m.assemble([A], checkpoint=Step(40), load=True), m.Ready(A))
    _, actions = play(group, m.Corrupt(A, "chunk 3"))
    assert actions == [m.RollBack(Step(40), "chunk 3")]


def test_committed_is_what_every_member_holds() -> None:
    group, _ = play(training(), m.Applied(A, Step(5)), m.Applied(B, Step(4)))
    assert group.committed == 4
    group, _ = play(group, m.Applied(B, Step(3)))
    assert group.committed == 4, "a late message takes nothing back"


def test_success_waits_for_every_member_and_for_the_last_checkpoint() -> None:
    group, actions = play(training(), m.SaveStarted(Step(9)), m.Ended(A, m.Outcome.FINISHED), m.Ended(B, m.Outcome.FINISHED))
    assert actions == []
    group, actions = play(group, m.SaveDecided(Step(9)))
    assert actions == [m.End(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)]
    assert play(group, m.Lost(A, "gone"), m.StopWanted())[1] == [], "nothing follows the end"


def test_a_last_checkpoint_that_failed_is_no_success() -> None:
    _, actions = play(training(1), m.SaveStarted(Step(9)), m.Ended(A, m.Outcome.FINISHED), m.SaveDecided(Step(9), "disk full"))
    assert actions == [m.End(JobState.FAILED, "the last checkpoint could not be saved: disk full", ExitCode.INFRASTRUCTURE)]


def test_a_failed_checkpoint_on_the_way_is_forgotten_when_a_later_one_succeeds() -> None:
    events = (
        m.SaveStarted(Step(5)),
        m.SaveDecided(Step(5), "away"),
        m.SaveStarted(Step(9)),
        m.SaveDecided(Step(9)),
        m.Ended(A, m.Outcome.FINISHED),
    )
    _, actions = play(training(1), *events)
    assert [action.state for action in actions if isinstance(action, m.End)] == [JobState.SUCCEEDED]


def test_stop_is_asked_once_and_ends_stopped() -> None:
    group, actions = play(training(), m.StopWanted(), m.StopWanted())
    assert actions == [m.Stop()]
    _, actions = play(group, m.Ended(A, m.Outcome.STOPPED), m.Ended(B, m.Outcome.STOPPED))
    assert actions == [m.End(JobState.STOPPED, "stopped on request", ExitCode.STOPPED)]


def test_stop_before_training_ends_at_once() -> None:
    _, actions = play(m.assemble([A], checkpoint=None, load=False), m.StopWanted())
    assert [type(action) for action in actions] == [m.End]


def test_a_lost_worker_frees_the_others_and_ends_the_job_resumable() -> None:
    _, actions = play(training(), m.Lost(B, "worker w1 died"))
    assert actions[0] == m.Leave()
    assert isinstance(actions[1], m.End)
    assert actions[1].state is JobState.FAILED
    assert "launch resume" in actions[1].reason


def test_a_worker_lost_after_its_part_is_done_is_no_failure() -> None:
    group, _ = play(training(), m.Ended(B, m.Outcome.FINISHED))
    assert play(group, m.Lost(B, "gone"))[1] == []


def test_an_unknown_worker_is_not_heard() -> None:
    group = training()
    assert play(group, m.Failed(WorkerId("w9"), "late", ExitCode.JOB_FAILED)) == (group, [])


def test_the_table_of_states_is_closed() -> None:
    assert set(STATES) == set(JobState)
    for state, row in STATES.items():
        assert row.next <= set(JobState)
        assert state not in row.next
        assert row.terminal == (state in {JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED})
