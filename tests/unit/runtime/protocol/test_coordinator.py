"""The controller's side of the generation protocol, event by event; tests/simulation plays whole runs of it."""

from __future__ import annotations

import pytest

from launcher.core.exit_codes import ExitCode
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.status import STATES, JobState
from launcher.runtime.protocol import coordinator as m
from launcher.runtime.protocol.coordinator import Coordinator, Outcome, Phase

pytestmark = pytest.mark.unit
A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")
G1, G2 = Generation(1), Generation(2)


def play(group: Coordinator, *events: m.Event) -> list[m.Action]:
    return [action for event in events for action in group.handle(event)]


def warm(*workers: WorkerId, minimum: int = 1, load: bool = False, checkpoint: Step | None = None) -> Coordinator:
    group = Coordinator(minimum=minimum, load=load, checkpoint=checkpoint)
    play(group, *(m.Started(each) for each in workers), *(m.Ready(each) for each in workers))
    return group


def training(*workers: WorkerId, minimum: int = 1) -> Coordinator:
    group = warm(*workers, minimum=minimum)
    play(
        group, m.ChangeWanted(join=workers), *(m.Prepared(each, G1) for each in workers), *(m.Formed(each, G1, Step(0)) for each in workers)
    )
    assert group.phase is Phase.TRAINING
    return group


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
    group = warm(A, B)
    assert kinds(play(group, m.ChangeWanted(join=(A, B)))) == [m.Prepare]
    assert play(group, m.Prepared(A, G1)) == []
    commit = commit_of(play(group, m.Prepared(B, G1)))
    assert (commit.donors, commit.receivers, commit.step) == ((0,), (1,), 0)
    assert play(group, m.Formed(A, G1, Step(0))) == []
    assert group.current is None
    assert kinds(play(group, m.Formed(B, G1, Step(0)))) == [m.Changed]
    assert group.ranks == (A, B)


def test_newcomers_take_the_state_of_the_boundary_and_leavers_are_released() -> None:
    group = training(A, B)
    play(group, m.Started(C), m.Ready(C), m.ChangeWanted(join=(C,), leave=(A,)))
    commit = commit_of(play(group, *(m.Prepared(each, G2) for each in (A, B, C))))
    assert (commit.formation.ranks, commit.leaving, commit.step) == ((B, C), (A,), None)
    assert (commit.donors, commit.receivers) == ((0,), (1,))
    actions = play(group, m.Left(A, G1, Step(3)), m.Formed(B, G2, Step(3)), m.Formed(C, G2, Step(3)))
    assert kinds(actions) == [m.Changed, m.Release]
    assert group.committed == 3


def test_donors_are_few_and_spread_and_only_those_without_a_state_receive() -> None:
    workers = tuple(WorkerId(f"w{index}") for index in range(32))
    newcomer = WorkerId("new")
    group = training(*workers)
    play(group, m.Started(newcomer), m.Ready(newcomer), m.ChangeWanted(join=(newcomer,)))
    commit = commit_of(play(group, *(m.Prepared(each, G2) for each in (*workers, newcomer))))
    assert commit.donors == (0, 4, 8, 12, 16, 20, 24, 28)
    assert commit.receivers == (32,)


def test_a_newcomer_that_cannot_connect_is_given_up_and_nobody_else_notices() -> None:
    group = training(A)
    play(group, m.Started(B), m.Ready(B), m.ChangeWanted(join=(B,)))
    assert kinds(play(group, m.Refused(B, G2, "no route"))) == [m.Withdraw, m.GiveUp]
    assert group.settled


def test_a_change_that_is_not_acknowledged_in_time_is_withdrawn() -> None:
    group = training(A)
    play(group, m.Started(B), m.Ready(B), m.ChangeWanted(join=(B,)), m.Prepared(A, G2))
    assert play(group, m.Expired(G2)) == [m.Withdraw(G2, (A, B)), m.GiveUp(B, "it did not connect to the others in time")]
    assert play(group, m.Prepared(B, G2)) == [], "it is late"


def test_one_change_at_a_time_and_none_while_the_run_stops() -> None:
    group = training(A)
    play(group, m.Started(B), m.Ready(B), m.ChangeWanted(join=(B,)))
    assert play(group, m.ChangeWanted(leave=(A,))) == []
    group = training(A, B)
    play(group, m.StopWanted())
    assert play(group, m.ChangeWanted(leave=(A,))) == []


def test_a_member_that_never_acknowledges_is_given_up_after_some_changes() -> None:
    group = training(A, B)
    for attempt in range(1, m.ATTEMPTS + 1):
        play(group, m.ChangeWanted(leave=(B,)), m.Prepared(A, Generation(group.number + 1)))
        actions = play(group, m.Expired(group.number))
        assert kinds(actions) == [m.Withdraw] + [m.GiveUp] * (attempt == m.ATTEMPTS)


def test_who_loaded_another_checkpoint_is_told_again_which_one_is_meant() -> None:
    group = warm(A, load=True, checkpoint=Step(8))
    assert play(group, m.Loaded(A, Step(4))) == []
    assert group.outstanding() == [m.Load((A,))]
    play(group, m.Loaded(A, Step(8)))
    assert group.outstanding() == []
    assert kinds(play(warm(A), m.Loaded(A, Step(4)))) == [m.GiveUp]


def test_what_was_not_answered_is_said_again() -> None:
    group = warm(A, B)
    play(group, m.ChangeWanted(join=(A, B)), m.Prepared(A, G1))
    (prepare,) = group.outstanding()
    assert isinstance(prepare, m.Prepare)
    assert prepare.to == (B,)
    play(group, m.Prepared(B, G1), m.Formed(A, G1, Step(0)))
    (commit,) = group.outstanding()
    assert isinstance(commit, m.Commit)
    assert commit.to == (B,)


# a crash


def test_all_leave_and_the_most_advanced_survivors_give_the_state() -> None:
    group = training(A, B, C)
    connect = m.Prepare(m.Formation(G2, (B, C)), (), (B, C), leave=True)
    assert play(group, m.Gone(A, "it died")) == [m.AbandonSaves(G1), connect]
    assert play(group, m.Left(B, G1, Step(4)), m.Prepared(B, G2), m.Prepared(C, G2)) == [], "what C holds is not known"
    assert group.awaited == (C,)
    assert group.outstanding() == [m.Prepare(connect.formation, (), (C,), leave=True)]
    commit = commit_of(play(group, m.Left(C, G1, Step(5))))
    assert (commit.donors, commit.receivers, commit.step, commit.again) == ((1,), (0,), 5, True)


def test_survivors_that_left_before_they_were_connected_are_waited_for() -> None:
    group = training(A, B, C)
    play(group, m.Gone(A, "it died"), m.Left(B, G1, Step(4)), m.Left(C, G1, Step(4)), m.Prepared(C, G2))
    assert group.outstanding() == [m.Prepare(m.Formation(G2, (B, C)), (), (B,))]
    assert commit_of(play(group, m.Prepared(B, G2))).receivers == ()


def test_a_newcomer_that_was_being_prepared_leaves_and_the_members_connect_without_it() -> None:
    group = training(A, B)
    play(group, m.Started(C), m.Ready(C), m.ChangeWanted(join=(C,)))
    actions = play(group, m.Gone(A, "it died"))
    assert actions == [m.AbandonSaves(G2), m.Leave(G2, (C,)), m.Prepare(m.Formation(Generation(3), (B,)), (), (B,), leave=True)]
    assert play(group, m.Left(B, G2, Step(4)), m.Prepared(B, Generation(3))) == []
    assert group.outstanding() == [m.Leave(G2, (C,))]
    assert commit_of(play(group, m.Left(C, G2, None))).formation.ranks == (B,)


def test_survivors_that_connect_too_slowly_while_they_leave_begin_anew_once_all_have_left() -> None:
    group = training(A, B, C)
    play(group, m.Gone(A, "it died"), m.Left(B, G1, Step(4)))
    assert play(group, m.Expired(G2)) == []
    (again,) = play(group, m.Left(C, G1, Step(4)))
    assert again == m.Prepare(m.Formation(Generation(3), (B, C)), (), (B, C))


def test_a_step_that_only_the_lost_one_had_is_not_of_the_line() -> None:
    group = training(A, B)
    play(group, m.Applied(A, G1, Step(5)), m.Gone(A, "it died"), m.Left(B, G1, Step(4)), m.Prepared(B, G2), m.Formed(B, G2, Step(4)))
    assert group.on_line(Step(4), G1)
    assert not group.on_line(Step(5), G1)
    assert group.on_line(Step(5), G2)


def test_who_dies_while_the_others_leave_is_not_waited_for() -> None:
    group = training(A, B, C)
    play(group, m.Gone(A, "it died"), m.Left(B, G1, Step(4)))
    (alone,) = play(group, m.Gone(C, "it died too"))
    assert alone == m.Prepare(m.Formation(Generation(3), (B,)), (), (B,))


def test_too_few_survivors_hold() -> None:
    group = training(A, B, minimum=2)
    play(group, m.Gone(B, "it died"), m.Left(A, G1, Step(4)))
    assert commit_of(play(group, m.Prepared(A, G2))).hold


def test_nobody_left_with_the_state_begins_a_term_anew() -> None:
    group = training(A)
    assert kinds(play(group, m.Gone(A, "it died"))) == [m.AbandonSaves, m.AllLost]


def test_a_committed_step_that_no_survivor_has_is_taken_from_the_store() -> None:
    group = training(A, B)
    play(group, m.Applied(A, G1, Step(4)), m.Applied(B, G1, Step(4)))
    assert group.committed == 4
    assert kinds(play(group, m.Gone(B, "it died"), m.Left(A, G1, None))) == [m.AbandonSaves, m.Prepare, m.AllLost]
    assert group.proposal is None


def test_survivors_that_cannot_connect_try_again_then_one_of_them_goes() -> None:
    group = training(A, B, C)
    play(group, m.Gone(A, "it died"))
    for attempt in range(m.ATTEMPTS):
        play(group, m.Left(B, group.number, Step(4)), m.Left(C, group.number, Step(4)))
        actions = play(group, m.Refused(B, group.number, "no route"))
        assert (m.GiveUp in kinds(actions)) == (attempt == m.ATTEMPTS - 1)


def test_where_all_wait_for_each_other_all_are_let_out() -> None:
    assert kinds(play(training(A, B), m.Stuck("nothing moves"))) == [m.AbandonSaves, m.Leave]


def test_committed_is_what_every_member_holds() -> None:
    group = training(A, B)
    play(group, m.Applied(A, G1, Step(5)), m.Applied(B, G1, Step(4)), m.Applied(B, G1, Step(3)))
    assert group.committed == 4, "a late message takes nothing back"


# from a checkpoint


def test_whoever_is_ready_loads_and_only_then_may_join() -> None:
    group = warm(A, load=True, checkpoint=Step(40))
    assert group.warm == []
    assert group.outstanding() == [m.Load((A,))]
    play(group, m.Loaded(A, Step(40)))
    assert group.warm == [A]


def test_a_corrupt_checkpoint_rolls_back() -> None:
    group = warm(A, load=True, checkpoint=Step(40))
    assert play(group, m.Corrupt(A, "chunk 3")) == [m.RollBack(Step(40), "chunk 3")]


# taking over


def found(worker: WorkerId, rank: int, **facts: object) -> m.Found:
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
    return m.Found(worker=worker, rank=rank, **{**known, **facts})  # type: ignore[arg-type]


def test_a_whole_generation_goes_on_and_what_was_prepared_is_withdrawn() -> None:
    group = Coordinator(minimum=1, load=False, recorded=Step(5))
    assert group.adopt([found(B, 1, pending=G2, seen=G2), found(A, 0)]) == [m.Withdraw(G2, (B,))]
    assert (group.ranks, group.committed) == ((A, B), 7)


@pytest.mark.parametrize("facts", [{"inside": False}, {"knows_commit": True, "pending": G2}, {"rank": 0}, {"generation": Generation(0)}])
def test_a_group_in_the_middle_of_something_is_let_out(facts: dict[str, object]) -> None:
    group = Coordinator(minimum=1, load=False)
    assert kinds(group.adopt([found(A, 0), found(B, **{"rank": 1, **facts})])) == [m.AbandonSaves, m.Leave]  # type: ignore[arg-type]


# the end


def test_success_waits_for_every_member_and_for_the_last_checkpoint() -> None:
    group = training(A, B)
    assert play(group, m.SaveStarted(Step(9), G1), *ended(Outcome.FINISHED, A, B)) == []
    assert play(group, m.SaveDecided(Step(9), "", G1)) == [m.End(JobState.SUCCEEDED, "", ExitCode.SUCCEEDED)]
    assert play(group, m.Gone(A, "gone"), m.StopWanted()) == [], "nothing follows the end"


def test_a_last_checkpoint_that_failed_is_saved_again_before_the_run_fails() -> None:
    group = training(A)
    for attempt in range(m.ATTEMPTS + 1):
        generation = group.generation
        events = (
            m.SaveStarted(Step(9), generation),
            m.Ended(A, generation, Outcome.FINISHED),
            m.SaveDecided(Step(9), "disk full", generation),
        )
        actions = play(group, *events)
        if attempt < m.ATTEMPTS:
            assert kinds(actions) == [m.AbandonSaves, m.Leave]
            play(group, m.Left(A, group.number, Step(9)))
            assert commit_of(play(group, m.Prepared(A, group.number))).save
            play(group, m.Formed(A, group.number, Step(9)))
    assert end_of(actions) == m.End(JobState.FAILED, "the last checkpoint could not be saved: disk full", ExitCode.INFRASTRUCTURE)


def test_a_failed_checkpoint_is_forgotten_when_a_later_one_succeeds() -> None:
    group = training(A)
    play(group, m.SaveStarted(Step(5), G1), m.SaveDecided(Step(5), "away", G1), m.SaveStarted(Step(9), G1), m.SaveDecided(Step(9), "", G1))
    assert end_of(play(group, *ended(Outcome.FINISHED, A))).state is JobState.SUCCEEDED


def test_stop_is_asked_once_and_ends_stopped() -> None:
    group = training(A, B)
    assert kinds(play(group, m.StopWanted(), m.StopWanted())) == [m.Stop]
    assert end_of(play(group, *ended(Outcome.STOPPED, A, B))).state is JobState.STOPPED


def test_stop_before_training_ends_at_once() -> None:
    assert kinds(play(warm(A), m.StopWanted())) == [m.End]


def test_a_worker_lost_after_its_part_is_done_is_no_failure() -> None:
    group = training(A, B)
    play(group, *ended(Outcome.FINISHED, B))
    assert play(group, m.Gone(B, "gone")) == []
    assert end_of(play(group, *ended(Outcome.FINISHED, A))).state is JobState.SUCCEEDED


def test_what_a_worker_says_late_of_an_older_generation_takes_nothing_back() -> None:
    group = training(A, B)
    play(group, *ended(Outcome.FINISHED, B), m.Ended(B, Generation(0), Outcome.HELD))
    assert end_of(play(group, *ended(Outcome.FINISHED, A))).state is JobState.SUCCEEDED


def test_an_unknown_worker_is_not_heard() -> None:
    group = training(A)
    assert play(group, m.Left(WorkerId("w9"), G1, Step(3)), m.Gone(WorkerId("w9"), "late")) == []


def test_the_table_of_states_is_closed() -> None:
    assert set(STATES) == set(JobState)
    for state, row in STATES.items():
        assert row.next <= set(JobState)
        assert state not in row.next
        assert row.terminal == (state in {JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED})
