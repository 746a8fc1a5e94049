"""What must hold after every event. Each check is made where the event happens, and names the invariant that it found broken."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from launcher.checkpoint.catalog import manifest_key
from launcher.checkpoint.manifest import CheckpointPart
from launcher.core.types import Generation, Step, Term, WorkerId
from launcher.record.lineage import LineageEntry, TermBase, in_lineage, lineage
from launcher.record.rows import MetricsRow
from launcher.record.status import JobState
from launcher.runtime.protocol import events as e
from launcher.runtime.protocol.participant import CommittedAssignment

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.collective import Group, Key
    from tests.simulation.controller import ControllerProcess
    from tests.simulation.worker import Worker


class Violation(Exception):
    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


class States:
    """A state is the chain of steps that led to it: computed again by another generation, it is another one."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.parents: list[int | None] = []
        self._known: dict[object, int] = {}

    def fresh(self, name: str) -> int:
        return self._intern(name, None, 0)

    def after(self, before: int, step: int, key: Key) -> int:
        return self._intern((before, step, key), before, step)

    def _intern(self, identity: object, parent: int | None, step: int) -> int:
        known = self._known.get(identity)
        if known is None:
            known = self._known[identity] = len(self.steps)
            self.steps.append(step)
            self.parents.append(parent)
        return known

    def at(self, state: int, step: int) -> int | None:
        """The state after `step` steps from which this one came."""
        here: int | None = state
        while here is not None and self.steps[here] > step:
            here = self.parents[here]
        return here if here is not None and self.steps[here] == step else None


class Checker:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.states = cluster.states
        self.fenced: set[WorkerId] = set()
        self.chain: list[LineageEntry] = []
        self.based_term = Term(0)
        self.claims: dict[Term, float] = {}
        self.proposals: dict[Key, tuple[object, ...]] = {}
        self.acks: dict[Key, set[WorkerId]] = {}
        self.decisions: dict[Key, e.Commit] = {}
        self.inputs: dict[tuple[Key, int], int] = {}
        self.high: dict[WorkerId, int] = {}
        self.terms: dict[WorkerId, int] = {}
        self.committed_in: dict[int, int] = {}
        self.line: dict[int, int] = {}
        self.reports: set[tuple[int, int]] = set()
        self.final: tuple[JobState, float] | None = None
        self.reason = ""
        """Of the final state."""
        self._found = False
        """The final state was read before its writer could say that it had written it."""
        self.sizes_changed = 0
        self._size = 0
        self._segments: dict[str, list[Any]] = {}
        self._manifests: dict[str, int] = {}

    def fail(self, invariant: str, detail: str) -> None:
        raise Violation(invariant, detail)

    # the generation

    def proposed(self, controller: ControllerProcess, formation: e.Formation, leaving: tuple[WorkerId, ...]) -> None:
        key, content = (controller.name, formation.generation), (formation.ranks, leaving)
        if self.proposals.setdefault(key, content) != content:
            self.fail("one generation, one membership", f"{key}: {self.proposals[key]} and {content}")

    def acknowledged(self, worker: Worker, controller: str, generation: Generation) -> None:
        self.acks.setdefault((controller, generation), set()).add(worker.name)

    def decided(self, controller: ControllerProcess, order: e.Commit) -> None:
        self.decisions.setdefault((controller.name, order.formation.generation), order)

    def entered(self, worker: Worker, group: Group) -> None:
        order = self.decisions.get(group.key)
        if order is None:
            self.fail("entered only what is committed", f"{worker.name} in {group.key}")
            return
        silent = {*order.formation.ranks, *order.leaving} - self.acks.get(group.key, set())
        if silent:
            self.fail("entered only what all acknowledged", f"{worker.name} in {group.key}; not {sorted(silent)}")

    def switches(self, worker: Worker, group: Group) -> None:
        after = (order for (_, generation), order in self.decisions.items() if generation > group.key[1])
        if not any(worker.name in order.formation.ranks or worker.name in order.leaving for order in after):
            self.fail("left only for what is committed", f"{worker.name} leaves {group.key}")

    def donors(self, group: Group, committed: CommittedAssignment) -> None:
        held = {group.snapshot[rank][:2] for rank in committed.donors}
        steps = {step for _, step in held}
        if len(held) != 1 or None in steps or (committed.step is not None and steps != {committed.step}):
            self.fail("donors hold one state, that of the change", f"{group.key}: {held}, step {committed.step}")

    # steps

    def obeys(self, worker: Worker, term: int) -> None:
        if term < self.terms.get(worker.name, 0):
            self.fail("no lower term is obeyed", f"{worker.name} of term {self.terms[worker.name]} hears term {term}")

    def attached(self, worker: Worker) -> None:
        self.obeys(worker, worker.term)
        self.terms[worker.name] = worker.term
        self.high[worker.name] = worker.participant.applied or 0
        if worker.term < self.based_term:
            self.fenced.add(worker.name)  # called by a controller that leads no more and has not seen it yet

    def holds(self, worker: Worker, step: int) -> None:
        assert worker.state is not None
        if self.states.steps[worker.state] != step:
            self.fail("a worker holds what it says", f"{worker.name}: {self.states.steps[worker.state]}, says {step}")
        self._applies(worker, step)

    def computes(self, worker: Worker, group: Group, step: int) -> None:
        assert worker.state is not None
        if self.inputs.setdefault((group.key, step), worker.state) != worker.state:
            self.fail("one state in a step", f"{worker.name} begins step {step} in {group.key} with another state")

    def _applies(self, worker: Worker, step: int) -> None:
        if step < self.high.get(worker.name, 0):
            self.fail("applied never goes back in a term", f"{worker.name}: {self.high[worker.name]}, then {step}")
        self.high[worker.name] = step

    def completed(self, worker: Worker, group: Group, step: int) -> None:
        self._applies(worker, step)
        if worker.name in self.fenced:
            return
        state = worker.state
        assert state is not None
        for other in self.cluster.workers.values():
            if other.alive and other is not worker and other.term == worker.term and other.name not in self.fenced:
                theirs, reached = other.state, other.participant.applied
                if theirs is not None and reached is not None and reached >= step and self.states.at(theirs, step) != state:
                    self.fail("one active generation", f"{worker.name} does step {step} in {group.key}, {other.name} did it in another")
        if self.line:
            newest = max(self.line)
            least = min(newest, step)
            if least in self.line and self.states.at(state, least) != self.line[least]:
                self.fail("a committed step stays", f"{worker.name} at {step} in {group.key} does not come from committed step {least}")

    # what is committed

    def committed(self, controller: ControllerProcess, step: int) -> None:
        before = self.committed_in.get(controller.term, 0)
        if step < before:
            self.fail("committed never goes back in a term", f"term {controller.term}: {before}, then {step}")
        if step == before:
            return
        self.committed_in[controller.term] = step
        if controller.term == self.based_term:
            assert controller.leadership is not None
            group = controller.leadership.group
            for name in group.ranks:
                worker = self.cluster.workers[name]
                if group.current is None and group.peers[name].applied is None:
                    continue  # a survivor of a change that was to have received the state
                if worker.alive and name not in self.fenced and (worker.participant.applied or 0) < step:
                    self.fail("a committed step is held by all", f"{name} holds {worker.participant.applied}, committed {step}")

    def row(self, controller: ControllerProcess, row: MetricsRow) -> None:
        if controller.term != self.based_term:
            return
        assert row.loss is not None
        step, state = row.step, int(row.loss)
        if step - 1 in self.line and self.states.parents[state] != self.line[step - 1]:
            self.fail("committed steps are one chain", f"step {step}")
        if self.line.setdefault(step, state) != state:
            self.fail("a committed step stays", f"step {step} is committed with another state")

    # the store

    def claimed(self, term: Term) -> None:
        self.claims[term] = self.cluster.loop.now

    def evicted(self, controller: ControllerProcess, worker: WorkerId) -> None:
        if controller.term == self.based_term:
            self.fenced.add(worker)

    def kills(self, controller: ControllerProcess, worker: WorkerId) -> None:
        highest = self.cluster.plain_run.highest_term()
        if highest > controller.term:
            self.fail("only who leads ends workers", f"{controller.name} of term {controller.term} ends {worker}, there is term {highest}")

    def based(self, controller: ControllerProcess, term: Term, base: TermBase) -> None:
        if term < self.based_term:
            return
        if self.final is not None and self.final[1] < self.claims[term]:
            self.fail("one final state", f"term {term} goes on after {self.final[0]}")
        self.final, self._found = None, False
        newest = max(self.line, default=0)
        found = controller.controller._takeover._found
        holds = [
            name for name, described in found.items() if name not in self.fenced and self.line and (described.state.applied or 0) >= newest
        ]
        if base.adopted_step is None and holds and newest > base.start and not controller.leads:
            self.fail("a committed step stays", f"term {term} starts from {base.start}, {holds} hold {newest}")
        if not holds or base.adopted_step is None:
            self.line = {step: state for step, state in self.line.items() if step <= base.start}
        self.fenced = set(self.cluster.workers).difference(base.workers)
        self.based_term = term
        self.committed_in.setdefault(term, base.adopted_step or 0)
        self.chain = lineage(self.cluster.plain_run.terms()[1])
        self.look_at_store()

    def parts(self, parts: Iterable[CheckpointPart]) -> None:
        if len({chunk.digest.partition("-")[0] for part in parts for chunk in part.chunks}) != 1:
            self.fail("a checkpoint is of one state", f"{parts}")

    def reported(self, term: Term, step: Step) -> None:
        self.reports.add((step, term))
        self.look_at_store()

    def look_at_store(self) -> None:
        chain, _objects = self.chain, self.cluster.store.objects
        for step, term in self.reports:
            if not in_lineage(chain, term, step) and manifest_key(step, term) not in self.cluster.damaged:
                self.fail("a reported checkpoint stays", f"step {step} of term {term}; lineage {chain}")
        states, reached = self._ledger()
        for name in self.cluster.plain_run.names("checkpoints"):
            step, term = int(name[:12]), int(name[13:25])
            if in_lineage(chain, term, step):
                if step > reached:
                    self.fail("the ledger is durable before the manifest", f"manifest of step {step}, ledger to {reached}")
                if step and states[step] != self._state_of(name):
                    self.fail("a checkpoint is of the lineage", f"step {step} of term {term}")

    def _state_of(self, checkpoint: str) -> int:
        known = self._manifests.get(checkpoint)
        if known is None:
            known = self._manifests[checkpoint] = json.loads(self.cluster.store.objects[f"r/checkpoints/{checkpoint}"])["state"]["number"]
        return known

    def _ledger(self) -> tuple[dict[int, int], int]:
        """The states of the lineage's rows by step, and how far the ledger goes; each step once, in order, without a hole."""
        reached = 0
        states: dict[int, int] = {}
        events, metrics = self._segments_of("events"), self._segments_of("metrics")
        batch = self.cluster.spec.config.trainer.global_batch_size
        for entry in self.chain:
            for name in events.get(entry.term, ()):
                for record in self._records(name):
                    first = max(record["first"], entry.start + 1)
                    last = record["last"] if entry.end is None else min(record["last"], entry.end)
                    if first > last:
                        continue
                    if first != reached + 1:
                        self.fail("each step once, in order", f"after {reached} comes {first} in {name}; lineage {self.chain}")
                    if record["samples"] != [(record["first"] - 1) * batch, record["last"] * batch]:
                        self.fail("each sample once", f"{record}")
                    reached = last
            for name in metrics.get(entry.term, ()):
                for row in self._records(name):
                    if entry.holds(row["step"]):
                        before = states.get(row["step"] - 1)
                        if before is not None and self.states.parents[int(row["loss"])] != before:
                            self.fail("the ledger is one chain", f"step {row['step']} in {name}")
                        states[row["step"]] = int(row["loss"])
        return states, reached

    def _segments_of(self, stream: str) -> dict[int, list[str]]:
        """Keys of a stream's segments, in order, by term."""
        found: dict[int, list[str]] = {}
        for name in self.cluster.plain_run.names(stream):
            found.setdefault(int(name[:12]), []).append(f"r/{stream}/{name}")
        return found

    def _records(self, name: str) -> list[Any]:
        """Rows of steps, and the ledger's entries."""
        known = self._segments.get(name)
        if known is None:
            lines = (line for line in self.cluster.store.objects[name].splitlines() if b'"loss"' in line or b'"first"' in line)
            known = self._segments[name] = [json.loads(line) for line in lines]
        return known

    def ended(self, term: Term, state: JobState, reason: str) -> None:
        if term != self.based_term:
            return
        if self.final is not None and not self._found:
            self.fail("one final state", f"{self.final} and {state}")
        if self.final is None:
            self._ended(state, reason)

    def found_ended(self) -> None:
        """A controller reads that the run has ended; whoever wrote it may have died before it could say so."""
        if self.final is None:
            status = self.cluster.plain_run.status(Term(self.based_term))
            assert status is not None
            self._found = True
            self._ended(status.state, status.reason)

    def _ended(self, state: JobState, reason: str) -> None:
        self.reason = reason
        self.final = (state, self.cluster.loop.now)
        self.look_at_store()
        if state is JobState.SUCCEEDED:
            total = Step(self.cluster.total_steps)
            saved = [name for name in self.cluster.plain_run.names("checkpoints") if int(name[:12]) == total]
            if not any(in_lineage(self.chain, int(name[13:25]), total) for name in saved) or self._ledger()[1] != total:
                self.fail("success means all is saved", f"{saved}, ledger {self._ledger()[1]}, of {total}")
        self.cluster.has_ended(state)

    def changed(self, controller: ControllerProcess, change: e.Changed) -> None:
        """A generation is formed; nothing to hold against it that the steps do not show."""
        if controller.term == self.based_term:
            size = len(change.formation.ranks)
            self.sizes_changed += self._size not in (0, size)
            self._size = size
