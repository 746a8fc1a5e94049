"""What a new term builds on, and whom it takes over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from launcher.checkpoint.catalog import CheckpointInfo, manifest_key
from launcher.core.types import Generation, RunId, Step, Term, WorkerId
from launcher.record import events as r
from launcher.record.desired import Desired
from launcher.record.lineage import TermBase
from launcher.record.members import Member
from launcher.record.run_store import RunStore
from launcher.record.status import JobState
from launcher.runtime.cluster.worker_group import AttachFailed, AttachRefused
from launcher.runtime.controller.checkpoint_committer import Save
from launcher.runtime.controller.inbox import CheckpointDecided
from launcher.runtime.controller.leadership import LeadershipLost
from launcher.runtime.controller.takeover import adoptable, base_on_checkpoint, base_on_workers, claim_leadership, since_answered
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.events import WorkerState
from launcher.runtime.protocol.group import Phase
from launcher.runtime.records.inheritance import Inheritance, inherit
from tests.support.stores import MemoryStore
from tests.unit.runtime.controller.harness import G3, READY, A, B, C, D, Harness, beat, described, desired, leave_term

pytestmark = pytest.mark.unit
G4 = Generation(4)


def after_a_term(*, wanted: Desired | None = None, **left: Any) -> Harness:
    """The controller of term 2; `left` by term 1, as leave_term takes it."""
    store = MemoryStore()
    leave_term(RunStore(store, RunId("r")), **left)
    return Harness(wanted, store=store)


def a_generation(*workers: WorkerId, applied: int) -> list[m.WorkerDescription]:
    """Generation 3 of term 1, at work."""
    size = len(workers)
    return [
        described(worker, ready=True, generation=3, rank=rank, world_size=size, applied=applied, inside=True)
        for rank, worker in enumerate(workers)
    ]


def replace_state(description: m.WorkerDescription, **changes: Any) -> m.WorkerDescription:
    return msgspec.structs.replace(description, state=replace(description.state, **changes))


def save_checkpoints(harness: Harness, *steps: int) -> None:
    for step in steps:
        harness.run.store.put(harness.run.key(manifest_key(step, harness.leadership.term)), b"{}")


def test_a_new_run_begins_at_nothing() -> None:
    left = inherit(RunStore(MemoryStore(), RunId("r")))
    assert base_on_checkpoint(left, None) == TermBase(from_term=None, checkpoint_step=None, adopted_step=None)


def test_workers_that_are_taken_over_go_on_where_the_ledger_ends() -> None:
    left = replace(inherit(RunStore(MemoryStore(), RunId("r"))), term=Term(1), recorded=Step(20))
    assert base_on_workers(left, [A]) == TermBase(from_term=Term(1), checkpoint_step=None, adopted_step=Step(20), workers=(A,))


def test_a_state_that_arrived_after_the_answer_counts_but_not_its_place() -> None:
    answer = WorkerState(A, True, Generation(3), 0, 2, None, True, None, None, False, Generation(3), Term(1))
    assert since_answered(answer, Generation(3), Step(7)) == replace(answer, applied=Step(7))
    assert since_answered(answer, Generation(4), Step(7)) == replace(answer, generation=Generation(4), applied=Step(7), inside=False)


def inheritance(**changes: Any) -> Inheritance:
    """Of term 3, whose ledger goes to step 20 in generation 5."""
    left = inherit(RunStore(MemoryStore(), RunId("r")))
    return replace(left, **{"term": Term(3), "recorded": Step(20), "generation": Generation(5), **changes})


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        pytest.param([described(A, generation=5, applied=20, born=3)], [A], id="called by the newest term"),
        pytest.param([described(A, generation=5, applied=20, born=2)], [], id="called by an earlier one that the newest did not take over"),
        pytest.param([described(B, generation=5, applied=20, born=2)], [B], id="taken over by the newest"),
        pytest.param([described(A, generation=4, applied=19, born=3)], [], id="not told of the newest generation in the ledger"),
        pytest.param([described(A, generation=4, applied=19, seen=5, born=3)], [A], id="told of it"),
        pytest.param(
            [described(A, generation=5, applied=20, born=3), described(C, generation=6, applied=21, born=3)],
            [C],
            id="not told of the newest generation that one of them entered",
        ),
        pytest.param([described(D, born=1)], [D], id="it never held anything"),
        pytest.param([described(D, generation=1, born=1)], [], id="it holds nothing, but was called into a generation"),
    ],
)
def test_those_may_be_adopted_whose_states_are_of_one_line(found: list[m.WorkerDescription], kept: list[WorkerId]) -> None:
    left = inheritance(workers=frozenset({B}))
    assert [each.worker for each in adoptable(left, [description.state for description in found])] == kept


def test_a_run_that_has_ended_is_led_by_nobody() -> None:
    harness = Harness()
    harness.controller.begin([])
    harness.controller.process([e.StopWanted()])
    harness.controller.write_end()
    assert claim_leadership(harness.run, desired(), "another", harness.clock) is None
    resumed = replace(desired(revision=2), resumes=Term(1))
    leadership = claim_leadership(harness.run, resumed, "another", harness.clock)
    assert leadership is not None
    assert leadership.term == 2


# nobody lives


def test_a_new_run_starts_from_nothing(harness: Harness) -> None:
    harness.controller.begin([])
    assert harness.takeover.decided
    assert not harness.takeover.adopted
    assert harness.run.terms()[1] == {Term(1): TermBase(from_term=None, checkpoint_step=None, adopted_step=None)}
    assert harness.events() == [r.TermStarted(from_term=None, checkpoint_step=None, adopted_step=None, steps_lost=0)]
    assert (harness.group.load, harness.group.checkpoint, harness.status.checkpoint) == (False, None, None)


def test_a_run_of_which_nobody_lives_starts_from_the_newest_checkpoint() -> None:
    harness = after_a_term(recorded=20, generation=3, checkpoints=(5, 15))
    harness.controller.begin([])
    assert harness.run.terms()[1][Term(2)] == TermBase(from_term=Term(1), checkpoint_step=Step(15), adopted_step=None)
    assert harness.events() == [r.TermStarted(from_term=Term(1), checkpoint_step=Step(15), adopted_step=None, steps_lost=5)]
    assert (harness.group.load, harness.group.checkpoint, harness.group.number) == (True, 15, 3)
    assert harness.status.checkpoint == CheckpointInfo(Step(15), Term(1))
    assert harness.status.steps_lost == 5
    assert harness.committer.done(Save(Step(15), G4)), "it is saved already"
    assert not harness.committer.done(Save(Step(20), G4))


def test_a_run_of_which_neither_a_worker_nor_a_checkpoint_is_left_begins_anew() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([])
    assert harness.events() == [r.TermStarted(from_term=Term(1), checkpoint_step=None, adopted_step=None, steps_lost=20)]
    assert (harness.group.load, harness.recorder.progress.step) == (False, 0)


def test_weights_of_another_run_are_loaded_where_there_is_no_checkpoint() -> None:
    harness = Harness(checkpoint__init_from="memory://others/r0")
    harness.controller.begin([])
    assert (harness.group.load, harness.group.checkpoint) == (True, None)


def test_a_run_that_is_to_stop_stops_at_once() -> None:
    harness = after_a_term(recorded=20, checkpoints=(15,), wanted=desired(state="stopped"))
    harness.controller.begin([])
    assert harness.leadership.end is not None
    assert harness.leadership.end.state is JobState.STOPPED


# workers live


def test_a_whole_generation_is_adopted_as_it_is() -> None:
    harness = after_a_term(recorded=20, generation=3, checkpoints=(15,))
    harness.controller.begin([A, B])
    assert [worker for worker, _ in harness.workers.attached] == [A, B]
    harness.answer(*a_generation(A, B, applied=21))
    base = TermBase(from_term=Term(1), checkpoint_step=None, adopted_step=Step(20), workers=(A, B))
    assert harness.run.terms()[1][Term(2)] == base
    assert harness.takeover.adopted
    assert (harness.group.phase, harness.group.ranks, harness.group.committed) == (Phase.TRAINING, (A, B), 21)
    started, adopted = harness.events()
    assert started == r.TermStarted(from_term=Term(1), checkpoint_step=None, adopted_step=Step(20), steps_lost=0)
    assert adopted == r.WorkersAdopted(workers=(Member(id=A, rank=0, node="here", pid=7), Member(id=B, rank=1, node="here", pid=7)))
    assert harness.sent() == [(A, m.SendRecords())], "what was said to the controller before may have been lost with it"
    assert harness.workers.ended == []
    assert harness.output.followed == [(A, True), (B, True)], "an earlier controller has told what they printed"
    assert (harness.recorder.generation, harness.status.total_steps) == (3, 100)
    assert harness.status.checkpoint == CheckpointInfo(Step(15), Term(1))


def test_a_group_in_the_middle_of_a_change_is_let_out() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, B])
    first, second = a_generation(A, B, applied=21)
    harness.answer(first, replace_state(second, inside=False))
    assert (harness.group.phase, harness.group.awaited) == (Phase.LEAVING, (A, B))
    assert harness.sent() == [(A, m.Leave(G3)), (B, m.Leave(G3))]
    assert harness.workers.ended == []


def test_a_newcomer_that_waits_for_a_change_is_told_that_it_comes_to_nothing() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, C])
    harness.answer(*a_generation(A, applied=21), described(C, ready=True, pending=4, seen=4))
    assert harness.group.ranks == (A,)
    assert harness.sent() == [(A, m.SendRecords()), (C, m.Withdraw(G4))]
    assert harness.of_kind(r.GenerationWithdrawn) == [r.GenerationWithdrawn(to_generation=G4)]


def test_checkpoints_that_are_not_decided_are_awaited_from_those_who_are_taken_over() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, B])
    undecided = ((Step(20), G3), (Step(18), G3))
    first, second = a_generation(A, B, applied=21)
    harness.answer(msgspec.structs.replace(first, undecided=undecided), second)
    assert harness.group.saving == {(20, 3)}, "what lies before the ledger's end is decided"
    harness.clock.advance(61.0)
    harness.committer.abandon_overdue()
    [decided] = harness.items()
    assert isinstance(decided, CheckpointDecided)
    assert (decided.step, decided.generation, decided.term) == (20, 3, 2)


def test_a_run_whose_workers_have_come_to_its_end_waits_for_the_last_checkpoint() -> None:
    harness = after_a_term(recorded=20)
    save = (Step(20), Generation(3))
    harness.controller.begin([A])
    harness.answer(msgspec.structs.replace(replace_state(a_generation(A, applied=20)[0], outcome=e.Outcome.FINISHED), undecided=(save,)))
    assert harness.group.saving == {save}
    assert harness.leadership.end is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"phase": "failed"}, id="failed"),
        pytest.param({"released": True}, id="released"),
        pytest.param({"spec": 2}, id="of another spec"),
    ],
)
def test_who_cannot_be_used_is_ended(changes: dict[str, Any]) -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, B])
    first, second = a_generation(A, B, applied=21)
    harness.answer(first, msgspec.structs.replace(second, **changes))
    assert harness.workers.ended == [B]
    assert B not in harness.registry
    assert harness.group.phase is Phase.LEAVING, "the generation is not whole without it"


@pytest.mark.parametrize("answer", [AttachRefused(B), AttachFailed(B, "it died")], ids=lambda answer: type(answer).__name__)
def test_who_refuses_or_is_dead_is_ended_and_the_others_are_taken_over(answer: AttachRefused | AttachFailed) -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, B])
    harness.answer(*a_generation(A, applied=21))
    assert not harness.takeover.decided
    harness.controller.handle(answer)
    assert (harness.workers.ended, harness.group.ranks) == ([B], (A,))


def test_who_does_not_answer_in_time_is_ended_and_not_heard_when_it_answers_late() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, B])
    first, second = a_generation(A, B, applied=21)
    harness.answer(first)
    harness.tick_after(4.1)
    assert harness.takeover.decided
    assert (harness.workers.ended, harness.group.awaited) == ([B], (A,))
    harness.answer(second)
    assert B not in harness.registry


def test_who_was_replaced_meanwhile_ends_nobody() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A])
    harness.run.claim_term("somebody else", "later")
    harness.controller.handle(AttachRefused(A))
    assert (harness.workers.ended, harness.leadership.lost) == ([], True)


def test_what_heartbeats_say_meanwhile_counts() -> None:
    harness = after_a_term(recorded=20, generation=3)
    harness.controller.begin([A, B])
    harness.answer(a_generation(A, B, applied=19)[0])
    harness.hear(A, beat(3, 21))
    harness.answer(a_generation(A, B, applied=19)[1])
    assert harness.takeover.adopted, "it holds what the ledger has"
    assert harness.group.applied(A) == 21


def test_who_holds_less_than_the_record_says_is_ended_and_the_rest_starts_from_the_checkpoint() -> None:
    harness = after_a_term(recorded=20, generation=3, checkpoints=(15,))
    harness.controller.begin([A, C])
    harness.answer(*a_generation(A, applied=19), described(C, ready=True))
    assert not harness.takeover.adopted
    assert harness.workers.ended == [A]
    assert harness.run.terms()[1][Term(2)] == TermBase(from_term=Term(1), checkpoint_step=Step(15), adopted_step=None, workers=(C,))
    assert harness.sent() == [(C, m.TermBegan(Term(2))), (C, m.Load(Step(15), Term(1)))]


def test_a_worker_that_stays_and_is_not_ready_is_waited_for() -> None:
    harness = after_a_term(recorded=20, generation=3, checkpoints=(15,))
    harness.controller.begin([C])
    harness.answer(described(C))
    assert harness.sent() == [(C, m.TermBegan(Term(2)))]
    assert harness.registry.records[C].ready_since is None
    harness.hear(C, READY)
    assert harness.sent() == [(C, m.Load(Step(15), Term(1)))]


def test_a_state_that_is_older_than_the_newest_checkpoint_is_not_adopted() -> None:
    harness = after_a_term(recorded=20, generation=3, checkpoints=(22,))
    harness.controller.begin([A])
    harness.answer(*a_generation(A, applied=21))
    assert not harness.takeover.adopted
    assert harness.group.checkpoint == 22


def test_a_run_that_is_to_stop_tells_those_who_are_taken_over() -> None:
    harness = after_a_term(recorded=20, generation=3, wanted=desired(state="stopped"))
    harness.controller.begin([A])
    harness.answer(*a_generation(A, applied=21))
    assert harness.sent() == [(A, m.SendRecords()), (A, m.Stop())]


# rolling back


def test_training_is_rolled_back_to_the_newest_usable_checkpoint_in_a_new_term(harness: Harness) -> None:
    harness.training(2)
    spare, begun = harness.warm(2)
    harness.registry.records[begun].used = True  # what it loads replaces what was begun
    harness.recorder.progress.committed(Step(12))
    save_checkpoints(harness, 5, 10)
    harness.quiet()
    harness.controller.process(harness.takeover.roll_back(lambda info: info.step < 10))
    assert (harness.leadership.term, harness.group.checkpoint, harness.group.load) == (2, 5, True)
    assert harness.run.terms()[1][Term(2)] == TermBase(
        from_term=Term(1), checkpoint_step=Step(5), adopted_step=None, workers=(spare, begun)
    )
    assert harness.workers.ended == [A, B], "their states are of the line that was left"
    assert set(harness.registry.records) == {spare, begun}
    told = (m.TermBegan(Term(2)), m.Load(Step(5), Term(1)))
    assert harness.sent() == [(worker, message) for message in told for worker in (spare, begun)]
    assert harness.of_kind(r.TermStarted) == [r.TermStarted(from_term=Term(1), checkpoint_step=Step(5), adopted_step=None, steps_lost=7)]
    assert harness.group.number == 1, "a generation's number is not given twice"


def test_where_no_checkpoint_is_usable_training_begins_anew_with_fresh_workers_alone(harness: Harness) -> None:
    harness.training(1)
    used, fresh = harness.warm(2)
    harness.registry.records[used].used = True
    save_checkpoints(harness, 5)
    harness.controller.process(harness.takeover.roll_back(lambda info: False))
    assert (harness.group.checkpoint, harness.group.load) == (None, False)
    assert harness.workers.ended == [A, used], "what was loaded in part is no beginning"
    assert set(harness.registry.records) == {fresh}


def test_nothing_is_begun_where_the_term_has_another_base(harness: Harness) -> None:
    harness.run.create_base(Term(1), TermBase(from_term=None, checkpoint_step=None, adopted_step=Step(7)))
    with pytest.raises(LeadershipLost):
        harness.controller.begin([])
    assert harness.events() == []
