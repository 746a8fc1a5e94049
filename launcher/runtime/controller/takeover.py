"""How a controller begins: claim a term, find the workers of earlier ones, adopt them or start from a checkpoint. Runs in the controller process.

A term is claimed first, and only then does the controller look: whoever claims later sees what came before. Then all living workers are asked what they
hold. Those that may be adopted, and hold what the record says, go on; otherwise training starts from the newest checkpoint. What the term builds
on is said once, in its base; a term without a base is skipped by every reader. A roll-back of training is a new term with the same controller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core import log
from launcher.core.clock import Clock, timestamp
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.jobspec.job import JobSpec
from launcher.record.desired import Desired
from launcher.record.events import TermStarted, WorkersAdopted
from launcher.record.lineage import TermBase
from launcher.record.run_store import RunStore
from launcher.runtime.cluster.worker_group import Attached, AttachFailed, AttachRefused
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.effects import AnnounceTerm, AskForRecords, AttachWorkers, EndWorkers, Work
from launcher.runtime.controller.leadership import Leadership, LeadershipLost
from launcher.runtime.controller.timing import Timing
from launcher.runtime.controller.worker_lifecycle import WorkerLifecycle
from launcher.runtime.controller.worker_output import WorkerOutput
from launcher.runtime.controller.worker_registry import WorkerRegistry
from launcher.runtime.policies.health import Health
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol import messages as m
from launcher.runtime.protocol.coordinator import Coordinator
from launcher.runtime.records.inheritance import Inheritance, inherit
from launcher.runtime.records.run_recorder import RunRecorder
from launcher.runtime.records.status_writer import StatusWriter


class Takeover:
    def __init__(
        self,
        run: RunStore,
        spec: JobSpec,
        leadership: Leadership,
        registry: WorkerRegistry,
        health: Health,
        lifecycle: WorkerLifecycle,
        committer: CheckpointCommitter,
        recorder: RunRecorder,
        status: StatusWriter,
        output: WorkerOutput,
        clock: Clock,
        timing: Timing,
        *,
        holder: str,
    ) -> None:
        """`holder`: of the terms that are claimed, for people: host and process id."""
        self._run, self._spec, self._leadership, self._registry, self._health = run, spec, leadership, registry, health
        self._lifecycle, self._committer, self._recorder, self._status = lifecycle, committer, recorder, status
        self._output, self._clock, self._timing, self._holder = output, clock, timing, holder
        self._asked: set[WorkerId] = set()
        """Living workers of earlier terms that have not answered yet."""
        self._others: list[WorkerId] = []
        """Those that answered and cannot be adopted, or never answered."""
        self._found: dict[WorkerId, m.WorkerDescription] = {}
        self._beats: dict[WorkerId, m.Beat] = {}
        """The newest of each worker."""
        self._deadline = 0.0
        self.decided = False
        """Whether it is settled which workers the term takes over."""
        self.adopted = False

    # finding the workers of earlier terms

    def begin(self, living: Sequence[WorkerId]) -> list[Work]:
        """Ask the workers that live what they hold."""
        self._asked = set(living)
        self._deadline = self._clock.monotonic() + self._timing.attach_s
        return [AttachWorkers(tuple(living))] if living else self._decide()

    def answered(self, answer: Attached | AttachRefused | AttachFailed) -> list[Work]:
        """What a worker answers to `begin`."""
        if answer.worker in self._asked:
            self._asked.discard(answer.worker)
            if isinstance(answer, Attached) and self._usable(answer.description):
                self._found[answer.worker] = answer.description
            else:
                self._others.append(answer.worker)
        return [] if self._asked else self._decide()

    def heard(self, worker: WorkerId, beat: m.Beat) -> None:
        """A heartbeat before it is decided who is taken over."""
        self._beats[worker] = beat

    def look(self, now: float) -> list[Work]:
        """Whoever has not answered in time is ended."""
        return self._decide() if not self.decided and now > self._deadline else []

    def _usable(self, described: m.WorkerDescription) -> bool:
        return described.phase != "failed" and not described.released and described.spec == self._spec.number

    def _decide(self) -> list[Work]:
        left, now = self._leadership.inherited, self._clock.monotonic()
        self.decided = True
        found = [self._newest_state(worker, described.state) for worker, described in self._found.items()]
        number = max([self._recorder.generation, *(each.seen for each in found), *(each.generation for each in found)])
        kept = adoptable(left, found)
        for each in kept:
            described = self._found[each.worker]
            record = self._registry.add(each.worker, now)
            record.description, record.used = described, each.generation > 0
            record.ready_since = now if each.ready else None
            self._health.heard(each.worker, None, now)
        others = (*sorted(self._asked), *self._others, *(worker for worker in self._found if worker not in self._registry))
        end: list[Work] = [EndWorkers(others)] if others else []
        if self._holds_the_record(kept):
            return [*end, *self._adopt(kept, Generation(number))]
        holding = [each.worker for each in kept if each.applied is not None]
        return [*end, *self._start_from(self._newest(), holding, Generation(number))]

    def _newest_state(self, worker: WorkerId, state: e.WorkerState) -> e.WorkerState:
        beat = self._beats.get(worker)
        return since_answered(state, beat.generation, beat.applied) if beat is not None else state

    def _holds_the_record(self, kept: Iterable[e.WorkerState]) -> bool:
        """Whether somebody among them holds what was recorded, and what was saved."""
        held = [each.applied for each in kept if each.applied is not None and each.generation]
        newest, recorded = self._newest(), self._leadership.inherited.recorded
        return bool(held) and max(held) >= max(recorded, newest.step if newest is not None else 0)

    def _newest(self) -> CheckpointInfo | None:
        return next(iter(self._leadership.inherited.checkpoints), None)

    # adopting them

    def _adopt(self, kept: Sequence[e.WorkerState], number: Generation) -> list[Work]:
        leadership, newest = self._leadership, self._newest()
        left = leadership.inherited
        self._open_term(base_on_workers(left, (each.worker for each in kept)))
        self.adopted = True
        self._recorder.begin_tracking()
        for each in kept:
            described = self._found[each.worker]
            if described.job is not None:
                self._status.know_job(described.job)
            self._output.follow(each.worker, described, from_end=True)
        leadership.coordinator = Coordinator(
            minimum=leadership.desired.workers.min,
            load=False,
            checkpoint=newest.step if newest is not None else None,
            recorded=left.recorded,
            generation=number,
        )
        for save in [Save(*undecided) for each in kept for undecided in self._found[each.worker].undecided]:
            if self._committer.take_over(save):
                leadership.coordinator.handle(e.SaveStarted(*save))  # before `adopt`, which may find that all have come to the end
        actions = leadership.coordinator.adopt(kept)
        group = leadership.group
        ask: list[Work] = []
        if group.current is not None:
            self._recorder.generation = group.generation
            self._health.formed(group.ranks, self._clock.monotonic())
            ask.append(AskForRecords())
        self._recorder.event(WorkersAdopted(workers=self._registry.describe(group.ranks)))
        return [*ask, *actions, *self._stop_if_wanted()]

    # starting from a checkpoint

    def roll_back(self, usable: Callable[[CheckpointInfo], bool]) -> list[Work]:
        """Begin a new term on the newest checkpoint that is `usable`. Raises LeadershipLost."""
        self._recorder.flush(ledger=False)
        term, left = claim_and_look(self._run, self._holder, timestamp(self._clock.now()))
        left = replace(left, checkpoints=tuple(info for info in left.checkpoints if usable(info)))
        group = self._leadership.group
        holding = [worker for worker, peer in group.peers.items() if peer.applied is not None]
        self._leadership.begin_term(term, left)
        return self._start_from(self._newest(), holding, group.number)

    def _start_from(self, checkpoint: CheckpointInfo | None, holding: Iterable[WorkerId], number: Generation) -> list[Work]:
        """A group from the beginning: of the workers that live and may be used, and of new ones, as the policy offers them.

        `holding`: those that hold a trained state, which is no beginning. What was loaded in part is one only where it is loaded anew.
        """
        records, leadership = self._registry.records, self._leadership
        held = set(holding)
        unusable = [each.worker for each in records.values() if each.worker in held or (each.used and checkpoint is None)]
        staying = [worker for worker in records if worker not in unusable]
        self._open_term(base_on_checkpoint(leadership.inherited, checkpoint, staying))
        leadership.coordinator = Coordinator(
            minimum=leadership.desired.workers.min,
            load=checkpoint is not None or self._spec.config.checkpoint.init_from is not None,
            checkpoint=checkpoint.step if checkpoint is not None else None,
            generation=number,
        )
        work = [*self._lifecycle.dismiss(unusable), AnnounceTerm(tuple(staying))]
        for worker in staying:
            work.append(e.Started(worker))
            if records[worker].ready_since is not None:
                work.append(e.Ready(worker))
        return [*work, *self._stop_if_wanted()]

    def _stop_if_wanted(self) -> list[Work]:
        return [e.StopWanted()] if self._leadership.desired.state == "stopped" else []

    def _open_term(self, base: TermBase) -> None:
        open_term(self._run, self._leadership, base, self._recorder, self._status)
        adopted = base.adopted_step is not None
        saved = (info.step for info in self._leadership.inherited.checkpoints if adopted or info.step <= base.start)
        self._committer.begin_term(self._leadership.term, base.start, saved)


def claim_leadership(run: RunStore, desired: Desired, holder: str, clock: Clock) -> Leadership | None:
    """A new term of the run; None where the run has ended."""
    if inherit(run).ended(desired):
        return None
    term, left = claim_and_look(run, holder, timestamp(clock.now()))
    return Leadership(run, term, left, desired) if not left.ended(desired) else None


def claim_and_look(run: RunStore, holder: str, at: str) -> tuple[Term, Inheritance]:
    """Take the next free term, then see what earlier ones left: nothing that counts can come after the look but before the claim."""
    term = run.claim_term(holder, at)
    return term, inherit(run)


def open_term(run: RunStore, leadership: Leadership, base: TermBase, recorder: RunRecorder, status: StatusWriter) -> None:
    """Say what the term builds on, and begin its records. Raises LeadershipLost where the term has another base."""
    left = leadership.inherited
    if not run.create_base(leadership.term, base):
        raise LeadershipLost
    log.bind(term=leadership.term)
    log.info(f"the term begins at step {base.start}")
    adopted = base.adopted_step is not None
    reached = max(left.reached, recorder.progress.step)
    recorder.begin_term(leadership.term, left, left.recorded if adopted else base.start)
    lost = 0 if adopted else max(0, reached - base.start)
    status.steps_lost += lost
    based_on = (info for info in left.checkpoints if adopted or info.step == base.checkpoint_step)
    status.checkpoint = next(based_on, None)
    recorder.event(
        TermStarted(from_term=base.from_term, checkpoint_step=base.checkpoint_step, adopted_step=base.adopted_step, steps_lost=lost)
    )


def base_on_checkpoint(left: Inheritance, checkpoint: CheckpointInfo | None, workers: Iterable[WorkerId] = ()) -> TermBase:
    """`workers`: those without a state that stay, to load the checkpoint."""
    step = checkpoint.step if checkpoint else None
    return TermBase(from_term=left.term, checkpoint_step=step, adopted_step=None, workers=tuple(workers))


def base_on_workers(left: Inheritance, workers: Iterable[WorkerId]) -> TermBase:
    """Living workers hold what the ledger says and more; the term's own records begin where those of earlier terms end."""
    return TermBase(from_term=left.term, checkpoint_step=None, adopted_step=left.recorded, workers=tuple(workers))


def since_answered(state: e.WorkerState, generation: Generation, applied: Step | None) -> e.WorkerState:
    """What a worker's heartbeat says after it has answered: a state may have reached it meanwhile, and may be the only one."""
    if generation == state.generation:
        return replace(state, applied=applied)
    return replace(state, generation=generation, applied=applied, inside=False)  # its place there is not known


def adoptable(left: Inheritance, found: Iterable[e.WorkerState]) -> list[e.WorkerState]:
    """The living workers that a new term may take over; all others are to be ended.

    Somebody that an earlier term, or the newest one, evicted may be alive and hold a step that the others computed again
    without it. Of the newest term are those that it called first, or took over. They hold states of one line if they were
    all told of the newest generation that one of them entered, or that the ledger knows: nobody enters one before all of
    its members were told.
    """
    known = list(found)
    ours = [each for each in known if each.born == left.term or each.worker in left.workers]
    newest = max((each.generation for each in ours), default=left.generation)
    newest = max(newest, left.generation)
    blank = [each for each in known if each.applied is None and not each.generation]
    return [each for each in known if each in blank or (each in ours and each.seen >= newest)]
