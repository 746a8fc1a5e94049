"""Where the invariants and the faults look into the real controller and participant: around their calls, never inside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, get_args

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.errors import StoreUnavailable
from launcher.core.store import ObjectStore
from launcher.core.types import Generation, JsonObject, RunId, Step, Term
from launcher.record.lineage import TermBase
from launcher.record.rows import MetricsRow
from launcher.record.run_store import RunStore
from launcher.record.status import RunStatus
from launcher.runtime.controller.checkpoint_committer import CheckpointCommitter, Save
from launcher.runtime.controller.controller import Controller
from launcher.runtime.controller.effects import EndWorkers, Work
from launcher.runtime.policies import failure as f
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol.participant import Participant
from launcher.runtime.records.event_log import EventLog
from launcher.runtime.records.run_recorder import RunRecorder

if TYPE_CHECKING:
    from tests.simulation.controller import ControllerProcess
    from tests.simulation.coverage import Coverage


ACTIONS = frozenset(get_args(e.Action))


class ObservedRun(RunStore):
    """The run store of one controller."""

    def __init__(self, store: ObjectStore, run_id: RunId, controller: ControllerProcess) -> None:
        super().__init__(store, run_id)
        self._controller, self._cluster = controller, controller.cluster

    def names(self, folder: str) -> list[str]:
        listed = self.store.list(self.key(folder))
        known = self._cluster.names.get(folder)
        if known is None or known[0] is not listed:
            known = self._cluster.names[folder] = listed, [info.key.rpartition("/")[2] for info in listed]
        return known[1]

    def _parsed(self, data: bytes, path: str) -> JsonObject:
        known = self._cluster.parsed.get(data)
        if known is None:
            known = self._cluster.parsed[data] = super()._parsed(data, path)
        return known

    def claim_term(self, holder: str, started_at: str) -> Term:
        term = super().claim_term(holder, started_at)
        self._cluster.check.claimed(term)
        return term

    def create_base(self, term: Term, base: TermBase) -> bool:
        created = False
        try:
            created = super().create_base(term, base)
        finally:
            if created or self._cluster.plain_run.terms()[1].get(term) == base:  # also where the answer was lost
                if self._cluster.loop.tracing:
                    self._cluster.loop.note(f"{self._controller.name} term {term} builds on {base}")
                self._cluster.check.based(self._controller, term, base)
                self._controller.leads = True
        return created

    def put_status(self, term: Term, status: RunStatus) -> None:
        try:
            super().put_status(term, status)
        except StoreUnavailable:
            if self._cluster.plain_run.status(term) != status:
                raise
        if status.state.terminal:
            self._cluster.check.ended(term, status.state, status.reason)

    def claim(self, path: str, document: Any) -> bool:
        claimed = super().claim(path, document)
        if claimed and path.startswith("checkpoints/"):
            self._cluster.check.look_at_store()
        return claimed


class ObservedLog(EventLog):
    controller: ControllerProcess

    def steps(self, row: MetricsRow, *, first: Step, generation: Generation) -> None:
        self.controller.cluster.check.row(self.controller, row)
        super().steps(row, first=first, generation=generation)


class ObservedRecorder(RunRecorder):
    def __init__(self, controller: ControllerProcess, *arguments: Any, **named: Any) -> None:
        self._controller = controller
        super().__init__(*arguments, **named)

    def _new_log(self, term: Term) -> EventLog:
        log = ObservedLog(self._run, term, self._writer, self._clock, batch=self._spec.config.trainer.global_batch_size)
        log.controller = self._controller
        return log

    def commit(self, step: Step) -> None:
        self._controller.cluster.check.committed(self._controller, step)
        super().commit(step)


def observe(process: ControllerProcess, controller: Controller, committer: CheckpointCommitter) -> None:
    """Look on, and die between two actions where that is due."""
    cluster, loop = process.cluster, process.loop
    executor, lifecycle = controller._executor, controller._lifecycle
    execute, decide, judge = executor.execute, controller._decide, lifecycle._judge
    commit, decided = committer._commit, committer._decide

    def executing(work: e.Action | Work) -> list[Work]:
        process.may_die()
        if loop.tracing:
            loop.note(f"{process.name} {work}")
        match work:
            case e.Prepare(formation, leaving):
                cluster.check.proposed(process, formation, leaving)
            case e.Commit():
                cluster.check.decided(process, work)
            case e.Changed():
                cluster.check.changed(process, work)
            case EndWorkers(workers):
                for worker in workers:
                    cluster.check.evicted(process, worker)
        if type(work) in ACTIONS:
            cluster.coverage.action(work)
            cluster.on_order(work)
        return execute(work)

    def deciding(event: e.Event) -> list[e.Action]:
        assert process.leadership is not None
        group = process.leadership.group
        cluster.coverage.event(group, event)
        if loop.tracing and type(event) not in (e.Applied, e.Ready):
            loop.note(f"{process.name} [{group.phase.value}] hears {event}")
        return decide(event)

    def judging(*arguments: Any, **named: Any) -> f.Verdict | None:
        verdict = judge(*arguments, **named)
        if isinstance(verdict, f.Fail):
            cluster.policy_failures.add(verdict.reason)
        return verdict

    def committing(save: Save) -> None:
        cluster.check.parts(committer._whole[save])
        commit(save)

    def telling(save: Save, failure: str, term: Term) -> None:
        if not failure and committer._newest == CheckpointInfo(save.step, term):
            cluster.check.reported(term, save.step)
        decided(save, failure, term)

    executor.execute, controller._decide, lifecycle._judge = executing, deciding, judging  # type: ignore[method-assign]
    committer._commit, committer._decide = committing, telling  # type: ignore[method-assign]
    if not cluster.retaining:
        committer.retain = lambda: None  # type: ignore[method-assign]


class ObservedParticipant(Participant):
    """Counts what it is asked, and what it wants done."""

    coverage: Coverage


def _counted(verb: str) -> Callable[..., Any]:
    real = getattr(Participant, verb)

    @wraps(real)
    def counted(self: ObservedParticipant, *arguments: Any, **named: Any) -> Any:
        self.coverage.participant(verb, self)
        answer = real(self, *arguments, **named)
        if isinstance(answer, list):
            for action in answer:
                self.coverage.says(action)
        return answer

    return counted


for _verb in (
    *("prepare", "commit", "withdraw", "leave", "release", "connected", "could_not_connect"),
    *("enter", "holds", "applies", "switched", "ended", "came_out"),
):
    setattr(ObservedParticipant, _verb, _counted(_verb))
