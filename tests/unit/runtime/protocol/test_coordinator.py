"""The controller's side of the generation protocol, event by event; tests/simulation plays whole runs of it."""

from __future__ import annotations

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.status import STATES, JobState
from launcher.runtime.protocol import events as m
from launcher.runtime.protocol import recovery
from launcher.runtime.protocol.coordinator import Coordinator
from launcher.runtime.protocol.events import Outcome
from launcher.runtime.protocol.group import Phase

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
G1, G2 = Generation(1), Generation(2)


def play(coordinator: Coordinator, *events: m.Event) -> list[m.Action]:
    return [action for event in events for action in coordinator.handle(event)]


def warm(*workers: WorkerId, minimum: int = 1, load: bool = False, checkpoint: Step | None = None) -> Coordinator:
    coordinator = Coordinator(minimum=minimum, load=load, checkpoint=checkpoint)
    play(coordinator, *(m.Started(each) for each in workers), *(m.Ready(each) for each in workers))
    return coordinator


def training(*workers: WorkerId, minimum: int = 1) -> Coordinator:
    coordinator = warm(*workers, minimum=minimum)
    play(
        coordinator,
        m.ChangeWanted(join=workers),
        *(m.Prepared(each, G1) for each in workers),
        *(m.Formed(each, G1, Step(0)) for each in workers),
    )
    assert coordinator.group.phase is Phase.TRAINING
    return coordinator


def kinds(actions: list[m.Action]) -> list[type]:
    return [type(action) for action in actions]


def commit_of(actions: list[m.Action]) -> m.Commit:
    return next(action for action in actions if isinstance(action, m.Commit))


def end_of(actions: list[m.Action]) -> m.End:
    return next(action for action in actions if isinstance(action, m.End))


def ended(outcome: Outcome, *workers: WorkerId) -> list[m.Event]:
    return [m.Ended(each, G1, outcome) for each in workers]


# a planned change


def test_the_first_generation_is_committed_when_all_have_acknowledged_and_present_when_all_have_formed_it() -> None:
    coordinator = warm(A, B)
    assert kinds(play(coordinator, m.ChangeWanted(join=(A, B)))) == [m.Prepare]
    assert play(coordinator, m.Prepared(A, G1)) == []
    commit = commit_of(play(coordinator, m.Prepared(B, G1)))
    assert (commit.donors, commit.receivers, commit.step) == ((0,), (1,), 0)
    assert play(coordinator, m.Formed(A, G1, Step(0))) == []
    assert coordinator.group.current is None
    assert kinds(play(coordinator, m.Formed(B, G1, Step(0)))) == [m.Changed]
    assert coordinator.group.ranks == (A, B)


def test_newcomers_take_the_state_of_the_boundary_and_leavers_are_released() -> None:
    coordinator = training(A, B)
    play(coordinator, m.Started(C), m.Ready(C), m.ChangeWanted(join=(C,), leave=(A,)))
    commit = commit_of(play(coordinator, *(m.Prepared(each, G2) for each in (A, B, C))))
    assert (commit.formation.ranks, commit.leaving, commit.step) == ((B, C), (A,), None)
    assert (commit.donors, commit.receivers) == ((0,), (1,))
    actions = play(coordinator, m.Left(A, G1, Step(3)), m.Formed(B, G2, Step(3)), m.Formed(C, G2, Step(3)))
    assert kinds(actions) == [m.Changed, m.Release]
    assert coordinator.group.committed == 3


def test_donors_are_few_and_spread_and_only_those_without_a_state_receive() -> None:
    workers = tuple(WorkerId(f"w{index}") for index in range(32))
    newcomer = WorkerId("new")
    coordinator = training(*workers)
    play(coordinator, m.Started(newcomer), m.Ready(newcomer), m.ChangeWanted(join=(newcomer,)))
    commit = commit_of(play(coordinator, *(m.Prepared(each, G2) for each in (*workers, newcomer))))
    assert commit.donors == (0, 4, 8, 12, 16, 20, 24, 28)
    assert commit.receivers == (32,)


def test_a_newcomer_that_cannot_connect_is_given_up_and_nobody_else_notices() -> None:
    coordinator = training(A)
    play(coordinator, m.Started(B), m.Ready(B), m.ChangeWanted(join=(B,)))
    assert kinds(play(coordinator, m.Refused(B, G2, "no route"))) == [m.Withdraw, m.Evict]
    assert coordinator.group.settled


def test_a_change_that_is_not_acknowledged_in_time_is_withdrawn() -> None:
    coordinator = training(A)
    play(coordinator, m.Started(B), m.Ready(B), m.ChangeWanted(join=(B,)), m.Prepared(A, G2))
    assert play(coordinator, m.Expired(G2)) == [m.Withdraw(G2, (A, B)), m.Evict(B, "it did not connect to the others in time")]
    assert play(coordinator, m.Prepared(B, G2)) == [], "it is late"


def test_one_change_at_a_time_and_none_while_the_run_stops() -> None:
    coordinator = training(A)
    play(coordinator, m.Started(B), m.Ready(B), m.ChangeWanted(join=(B,)))
    assert play(coordinator, m.ChangeWanted(leave=(A,))) == []
    coordinator = training(A, B)
    play(coordinator, m.StopWanted())
    assert play(coordinator, m.ChangeWanted(leave=(A,))) == []


def test_a_member_that_never_acknowledges_is_given_up_after_some_changes() -> None:
    coordinator = training(A, B)
    for attempt in range(1, recovery.ATTEMPTS + 1):
        play(coordinator, m.ChangeWanted(leave=(B,)), m.Prepared(A, Generation(coordinator.group.number + 1)))
        actions = play(coordinator, m.Expired(coordinator.group.number))
        assert kinds(actions) == [m.Withdraw] + [m.Evict] * (attempt == recovery.ATTEMPTS)


def test_who_loaded_another_checkpoint_is_told_again_which_one_is_meant() -> None:
    coordinator = warm(A, load=True, checkpoint=Step(8))
    assert play(coordinator, m.Loaded(A, Step(4))) == []
    assert coordinator.outstanding() == [m.Load((A,))]
    play(coordinator, m.Loaded(A, Step(8)))
    assert coordinator.outstanding() == []
    assert kinds(play(warm(A), m.Loaded(A, Step(4)))) == [m.Evict]


def test_what_was_not_answered_is_said_again() -> None:
    coordinator = warm(A, B)
    play(coordinator, m.ChangeWanted(join=(A, B)), m.Prepared(A, G1))
    (prepare,) = coordinator.outstanding()
    assert isinstance(prepare, m.Prepare)
    assert prepare.to == (B,)
    play(coordinator, m.Prepared(B, G1), m.Formed(A, G1, Step(0)))
    (commit,) = coordinator.outstanding()
    assert isinstance(commit, m.Commit)
    assert commit.to == (B,)


# a crash


def test_all_leave_and_the_most_advanced_survivors_give_the_state() -> None:
    coordinator = training(A, B, C)
    connect = m.Prepare(m.Formation(G2, (B, C)), (), (B, C), leave=True)
    assert play(coordinator, m.Gone(A, "it died")) == [m.AbandonSaves(G1), connect]
    assert play(coordinator, m.Left(B, G1, Step(4)), m.Prepared(B, G2), m.Prepared(C, G2)) == [], "what C holds is not known"
    assert coordinator.group.awaited == (C,)
    assert coordinator.outstanding() == [m.Prepare(connect.formation, (), (C,), leave=True)]
    commit = commit_of(play(coordinator, m.Left(C, G1, Step(5))))
    assert (commit.donors, commit.receivers, commit.step, commit.again) == ((1,), (0,), 5, True)


def test_survivors_that_left_before_they_were_connected_are_waited_for() -> None:
    coordinator = training(A, B, C)
    play(coordinator, m.Gone(A, "it died"), m.Left(B, G1, Step(4)), m.Left(C, G1, Step(4)), m.Prepared(C, G2))
    assert coordinator.outstanding() == [m.Prepare(m.Formation(G2, (B, C)), (), (B,))]
    assert commit_of(play(coordinator, m.Prepared(B, G2))).receivers == ()


def test_a_newcomer_that_was_being_prepared_leaves_and_the_members_connect_without_it() -> None:
    coordinator = training(A, B)
    play(coordinator, m.Started(C), m.Ready(C), m.ChangeWanted(join=(C,)))
    actions = play(coordinator, m.Gone(A, "it died"))
    assert actions == [m.AbandonSaves(G2), m.Leave(G2, (C,)), m.Prepare(m.Formation(Generation(3), (B,)), (), (B,), leave=True)]
    assert play(coordinator, m.Left(B, G2, Step(4)), m.Prepared(B, Generation(3))) == []
    assert coordinator.outstanding() == [m.Leave(G2, (C,))]
    assert commit_of(play(coordinator, m.Left(C, G2, None))).formation.ranks == (B,)


def test_survivors_that_connect_too_slowly_while_they_leave_begin_anew_once_all_have_left() -> None:
    coordinator = training(A, B, C)
    play(coordinator, m.Gone(A, "it died"), m.Left(B, G1, Step(4)))
    assert play(coordinator, m.Expired(G2)) == []
    (again,) = play(coordinator, m.Left(C, G1, Step(4)))
    assert again == m.Prepare(m.Formation(Generation(3), (B, C)), (), (B, C))


def test_a_step_that_only_the_lost_one_had_is_not_of_the_line() -> None:
    coordinator = training(A, B)
    play(coordinator, m.Applied(A, G1, Step(5)), m.Gone(A, "it died"), m.Left(B, G1, Step(4)), m.Prepared(B, G2), m.Formed(B, G2, Step(4)))
    assert coordinator.group.on_line(Step(4), G1)
    assert not coordinator.group.on_line(Step(5), G1)
    assert coordinator.group.on_line(Step(5), G2)


def test_who_dies_while_the_others_leave_is_not_waited_for() -> None:
    coordinator = training(A, B, C)
    play(coordinator, m.Gone(A, "it died"), m.Left(B, G1, Step(4)))
    (alone,) = play(coordinator, m.Gone(C, "it died too"))
    assert alone == m.Prepare(m.Formation(Generation(3), (B,)), (), (B,))


def test_too_few_survivors_hold() -> None:
    coordinator = training(A, B, minimum=2)
    play(coordinator, m.Gone(B, "it died"), m.Left(A, G1, Step(4)))
    assert commit_of(play(coordinator, m.Prepared(A, G2))).hold


def test_nobody_left_with_the_state_begins_a_term_anew() -> None:
    coordinator = training(A)
    assert kinds(play(coordinator, m.Gone(A, "it died"))) == [m.AbandonSaves, m.AllLost]


def test_a_committed_step_that_no_survivor_has_is_taken_from_the_store() -> None:
    coordinator = training(A, B)
    play(coordinator, m.Applied(A, G1, Step(4)), m.Applied(B, G1, Step(4)))
    assert coordinator.group.committed == 4
    assert kinds(play(coordinator, m.Gone(B, "it died"), m.Left(A, G1, None))) == [m.AbandonSaves, m.Prepare, m.AllLost]
    assert coordinator.group.proposal is None


def test_survivors_that_cannot_connect_try_again_then_one_of_them_goes() -> None:
    coordinator = training(A, B, C)
    play(coordinator, m.Gone(A, "it died"))
    for attempt in range(recovery.ATTEMPTS):
        play(coordinator, m.Left(B, coordinator.group.number, Step(4)), m.Left(C, coordinator.group.number, Step(4)))
        actions = play(coordinator, m.Refused(B, coordinator.group.number, "no route"))
        assert (m.Evict in kinds(actions)) == (attempt == recovery.ATTEMPTS - 1)


def test_where_all_wait_for_each_other_all_are_let_out() -> None:
    assert kinds(play(training(A, B), m.Stuck("nothing moves"))) == [m.AbandonSaves, m.Leave]


def test_a_member_that_is_gone_after_its_end_is_not_waited_for_in_the_next_generation() -> None:
    """All came to the end while a change was committed; A went on into the next generation and came to its end, and B is gone before."""
    coordinator = training(A, B, C)
    play(coordinator, m.ChangeWanted(leave=(C,)), *(m.Prepared(each, G2) for each in (A, B, C)))
    play(coordinator, *ended(Outcome.FINISHED, A, B, C)[:2], m.Formed(A, G2, Step(9)), m.Ended(A, G2, Outcome.FINISHED))
    actions = play(coordinator, m.Gone(B, "it died"), m.Ended(C, G1, Outcome.FINISHED))
    assert end_of(actions).state is JobState.SUCCEEDED


def test_where_all_wait_for_the_state_of_a_generation_that_survivors_form_all_are_let_out() -> None:
    coordinator = training(A, B, C)
    actions = play(coordinator, m.Gone(C, "it died"), m.Left(A, G1, Step(4)), m.Left(B, G1, Step(4)))
    assert kinds(actions)[-1] is m.Prepare
    assert play(coordinator, m.Stuck("nobody is in a collective before the commit")) == []
    assert kinds(play(coordinator, m.Prepared(A, G2), m.Prepared(B, G2))) == [m.Commit]
    assert kinds(play(coordinator, m.Stuck("nothing moves"))) == [m.AbandonSaves, m.Leave]


def test_committed_is_what_every_member_holds() -> None:
    coordinator = training(A, B)
    play(coordinator, m.Applied(A, G1, Step(5)), m.Applied(B, G1, Step(4)), m.Applied(B, G1, Step(3)))
    assert coordinator.group.committed == 4, "a late message takes nothing back"


# from a checkpoint


def test_whoever_is_ready_loads_and_only_then_may_join() -> None:
    coordinator = warm(A, load=True, checkpoint=Step(40))
    assert coordinator.group.warm == []
    assert coordinator.outstanding() == [m.Load((A,))]
    play(coordinator, m.Loaded(A, Step(40)))
    assert coordinator.group.warm == [A]


def test_a_corrupt_checkpoint_rolls_back() -> None:
    coordinator = warm(A, load=True, checkpoint=Step(40))
    assert play(coordinator, m.Corrupt(A, "chunk 3")) == [m.RollBack(Step(40), "chunk 3")]


# taking over


def found(worker: WorkerId, rank: int, **facts: object) -> m.WorkerState:
    known: dict[str, object] = {
        "ready": True,
        "generation": G1,
        "world_size": 2,
        "applied": Step(7),
        "inside": True,
        "outcome": None,
        "pending": None,
        "knows_commit": False,
        "seen": G1,
        "born": Term(1),
    }
    return m.WorkerState(worker=worker, rank=rank, **{**known, **facts})  # type: ignore[arg-type]


def test_a_whole_generation_goes_on_and_what_was_prepared_is_withdrawn() -> None:
    coordinator = Coordinator(minimum=1, load=False, recorded=Step(5))
    assert coordinator.adopt([found(B, 1, pending=G2, seen=G2), found(A, 0)]) == [m.Withdraw(G2, (B,))]
    assert (coordinator.group.ranks, coordinator.group.committed) == ((A, B), 7)


@pytest.mark.parametrize("facts", [{"inside": False}, {"knows_commit": True, "pending": G2}, {"rank": 0}, {"generation": Generation(0)}])
def test_a_group_in_the_middle_of_something_is_let_out(facts: dict[str, object]) -> None:
    coordinator = Coordinator(minimum=1, load=False)
    assert kinds(coordinator.adopt([found(A, 0), found(B, **{"rank": 1, **facts})])) == [m.AbandonSaves, m.Leave]  # type: ignore[arg-type]


# the end


def test_success_waits_for_every_member_and_for_the_last_checkpoint() -> None:
    coordinator = training(A, B)
    assert play(coordinator, m.SaveStarted(Step(9), G1), *ended(Outcome.FINISHED, A, B)) == []
    assert play(coordinator, m.SaveDecided(Step(9), "", G1)) == [m.End(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)]
    assert play(coordinator, m.Gone(A, "gone"), m.StopWanted()) == [], "nothing follows the end"


def test_a_last_checkpoint_that_failed_is_saved_again_before_the_run_fails() -> None:
    coordinator = training(A)
    for attempt in range(recovery.ATTEMPTS + 1):
        generation = coordinator.group.generation
        events = (
            m.SaveStarted(Step(9), generation),
            m.Ended(A, generation, Outcome.FINISHED),
            m.SaveDecided(Step(9), "disk full", generation),
        )
        actions = play(coordinator, *events)
        if attempt < recovery.ATTEMPTS:
            assert kinds(actions) == [m.AbandonSaves, m.Leave]
            play(coordinator, m.Left(A, coordinator.group.number, Step(9)))
            assert commit_of(play(coordinator, m.Prepared(A, coordinator.group.number))).save
            play(coordinator, m.Formed(A, coordinator.group.number, Step(9)))
    assert end_of(actions) == m.End(JobState.FAILED, "the last checkpoint could not be saved: disk full", ExitCode.INFRASTRUCTURE)


def test_a_failed_checkpoint_is_forgotten_when_a_later_one_succeeds() -> None:
    coordinator = training(A)
    play(
        coordinator,
        m.SaveStarted(Step(5), G1),
        m.SaveDecided(Step(5), "away", G1),
        m.SaveStarted(Step(9), G1),
        m.SaveDecided(Step(9), "", G1),
    )
    assert end_of(play(coordinator, *ended(Outcome.FINISHED, A))).state is JobState.SUCCEEDED


def test_stop_is_asked_once_and_ends_stopped() -> None:
    coordinator = training(A, B)
    assert kinds(play(coordinator, m.StopWanted(), m.StopWanted())) == [m.Stop]
    assert end_of(play(coordinator, *ended(Outcome.STOPPED, A, B))).state is JobState.STOPPED


def test_stop_before_training_ends_at_once() -> None:
    assert kinds(play(warm(A), m.StopWanted())) == [m.End]


def test_a_worker_lost_after_its_part_is_done_is_no_failure() -> None:
    coordinator = training(A, B)
    play(coordinator, *ended(Outcome.FINISHED, B))
    assert play(coordinator, m.Gone(B, "gone")) == []
    assert end_of(play(coordinator, *ended(Outcome.FINISHED, A))).state is JobState.SUCCEEDED


def test_what_a_worker_says_late_of_an_older_generation_takes_nothing_back() -> None:
    coordinator = training(A, B)
    play(coordinator, *ended(Outcome.FINISHED, B), m.Ended(B, Generation(0), Outcome.HELD))
    assert end_of(play(coordinator, *ended(Outcome.FINISHED, A))).state is JobState.SUCCEEDED


def test_an_unknown_worker_is_not_heard() -> None:
    coordinator = training(A)
    assert play(coordinator, m.Left(WorkerId("w9"), G1, Step(3)), m.Gone(WorkerId("w9"), "late")) == []


def test_the_table_of_states_is_closed() -> None:
    assert set(STATES) == set(JobState)
    for state, row in STATES.items():
        assert row.next <= set(JobState)
        assert state not in row.next
        assert row.terminal == (state in {JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED})
