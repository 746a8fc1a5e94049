"""The real Trainer on real Gloo ranks, each a thread of this process; one computes at a time, the others wait for it or for their peers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from launcher.checkpoint.manifest import CheckpointPart, assemble
from launcher.config.parse import parse_config
from launcher.config.schema import JobConfig
from launcher.core.types import RunId, Term
from launcher.record.run_store import RunStore
from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.reduce import exchange
from launcher.training.state.transfer import StateMove
from launcher.training.step import StepFlags
from launcher.training.trainer import RunOutcome, StepRecord, Trainer
from tests.oracle.cases import Case, Change, settings_of
from tests.unit.training.small_jobs import MemoryStore

HANG_S = 60.0
GROUPS = ("elastic", "resources", "checkpoint", "backend", "tracking", "code")


def job(case: Case) -> JobConfig:
    """The configuration of a case's job."""
    double = case.precision == "fp64"
    plan = msgspec.to_builtins(case.model)
    document: dict[str, Any] = {
        "workers": f"1..{case.most_ranks}",
        "seed": case.seed,
        "model": {"_target_": "tests.oracle.models.build", "plan": plan, "double": double},
        "data": {"_target_": "tests.oracle.tasks.Data", "size": case.samples, "double": double},
        "task": {"_target_": "tests.oracle.tasks.EngineTask", "weighted": case.weighted},
        "optimizer": {"_target_": "tests.oracle.optimizers.optimizer", **settings_of(case)},
        "trainer": {
            "steps": case.steps,
            "global_batch_size": case.shards * case.micro,
            "micro_batch_size": case.micro,
            "precision": "bf16" if case.precision == "bf16" else "fp32",
            "grad_clip_norm": case.grad_clip_norm,
            "eval_every_steps": case.eval_every_steps,
        },
        **{group: {} for group in GROUPS},
    }
    document["elastic"] = {"exact": case.exact}
    if case.scheduler is not None:
        schedule = {"name": case.scheduler, "total_steps": "total_steps"}
        document["scheduler"] = {"_target_": "tests.oracle.optimizers.scheduler", **schedule}
    return parse_config(document)


class Turn:
    """Whose turn it is to compute: threads share torch's default generator, processes do not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        with self._lock:
            yield

    @contextmanager
    def given_away(self) -> Iterator[None]:
        """While this thread, whose turn it is, waits for others."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class Mark:
    """Counts what a rank's collective does in the step in which the rank is to leave it, or from the beginning on."""

    def __init__(self, event: int, step: int | None) -> None:
        """`step`: None where it is the beginning."""
        self.left = event
        self.step = step
        self.reached = step is None

    def passed(self) -> bool:
        """Count one; whether this is where the rank leaves."""
        if not self.reached:
            return False
        self.left -= 1
        return self.left < 0


class RankCollective(Collective):
    """Takes turns with the others, and leaves where its mark says so."""

    turn: Turn
    mark: Mark | None = None

    def connect(self, store: Any) -> None:
        with self.turn.given_away():
            super().connect(store)

    def _call(self, call: Any) -> Any:
        self._pass_mark()
        return super()._call(call)

    def _wait(self, work: Any) -> None:
        with self.turn.given_away():
            super()._wait(work)
        self._pass_mark()

    def _pass_mark(self) -> None:
        if self.mark is not None and self.mark.passed():
            self.leave()
            raise CollectiveBroken("left")


class ThreadStore:
    """A KeyValueStore that the threads of one generation share."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str, timeout_s: float) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_s):
                raise TimeoutError(key)
            return self._values[key]


class Worker:
    """One worker of the job, from its start to its end; it is the Trainer's Observer."""

    def __init__(self, config: JobConfig, run: RunStore, *, first: bool) -> None:
        """`first`: what it builds is what the training starts from; others build something else, as another machine might."""
        self.records: list[StepRecord] = []
        self.evaluations: dict[int, float] = {}
        """Losses on the held-out samples, by step."""
        self.parts: list[CheckpointPart] = []
        self.failures: list[Exception] = []
        self.ends_at: tuple[str, int] | None = None
        """Which flag it raises, and after how many steps."""
        self.mark: Mark | None = None
        self.trainer = Trainer(config, run, self, device="cpu", threads=1)
        self.trainer.build()
        self.trainer.warm_up()
        self.holds = first
        """Whether it holds the state of the training."""
        if not first:
            with torch.no_grad():
                for tensor in [*self.trainer._parts.model.parameters(), *self.trainer._parts.model.buffers()]:
                    tensor.add_(1)

    def applied(self, record: StepRecord) -> None:
        self.records.append(record)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.evaluations[step] = metrics["loss"]

    def saved(self, part: CheckpointPart, seconds: float) -> None:
        self.parts.append(part)

    def save_failed(self, step: int, generation: int, error: Exception) -> None:
        self.failures.append(error)

    def doing(self, what: str) -> None: ...

    def flags(self) -> StepFlags:
        step = self.trainer.step
        if self.mark is not None and self.mark.step == step:
            self.mark.reached = True
        kind, at = self.ends_at or ("", 0)
        reached = bool(kind) and step + 1 >= at
        return StepFlags(stop=kind == "stop" and reached, switch=kind == "switch" and reached)


class Group:
    """The workers of a job through its generations."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._config = job(case)
        self._run = RunStore(MemoryStore(), RunId("run-1"))
        self._turn = Turn()
        self._generation = 0
        self._again = False
        self.members = [self._worker(first=rank == 0) for rank in range(case.ranks)]
        self.everybody = list(self.members)
        """Also those that have left."""

    def train(self) -> None:
        """All that happens to the job, to its end."""
        for change in self._case.changes:
            outcomes = self._generate(change)
            if outcomes == [RunOutcome.FINISHED] * len(outcomes):
                return  # the end came before the change
            self._carry_out(change)
        outcomes = self._generate(None)
        if outcomes != [RunOutcome.FINISHED] * len(outcomes):
            raise AssertionError(f"the last generation ended as {outcomes}")

    def _worker(self, *, first: bool = False) -> Worker:
        made = Worker(self._config, self._run, first=first)
        if not first:
            made.trainer.prepare_to_receive()
        return made

    def _generate(self, change: Change | None) -> list[RunOutcome | None]:
        """One generation, up to a change; how it ended for each member, None where it broke."""
        self._generation += 1
        for rank, member in enumerate(self.members):
            member.ends_at = member.mark = None
            if change is None:
                continue
            if change.kind == "resize":
                member.ends_at = ("switch", change.step)
            elif change.kind == "resume" and rank == change.turn % len(self.members):
                member.ends_at = ("stop", change.step)
            elif change.kind == "kill" and rank == change.turn % len(self.members):
                member.mark = Mark(change.event, None if change.sharing else change.step)
        outcomes = run_generation(self.members, self._turn, self._generation, again=self._again)
        self._again = False
        wanted = {"resize": RunOutcome.SWITCHED, "resume": RunOutcome.STOPPED, "kill": None}
        expected = RunOutcome.FINISHED if change is None else wanted[change.kind]
        if not set(outcomes) <= {expected, RunOutcome.FINISHED}:
            raise AssertionError(f"generation {self._generation} ended as {outcomes}")
        return outcomes

    def _carry_out(self, change: Change) -> None:
        turn = change.turn % len(self.members)
        if change.kind == "resume":
            self._resume(change.size, restored=1 + turn % change.size)
            return
        staying = self.members[turn:] + self.members[:turn]
        if change.kind == "kill":
            self._again = True
            if any(member.holds for member in staying[1:]):  # else the job would begin again at a checkpoint: that is a resume
                staying = staying[1:]
        holder = next(member for member in staying if member.holds)
        members = staying[: change.size] if holder in staying[: change.size] else [holder, *staying[: change.size - 1]]
        while len(members) < change.size:
            members.insert(len(members) if change.turn % 2 else 0, self._joining())
        self.members = members

    def _joining(self) -> Worker:
        worker = self._worker()
        self.everybody.append(worker)
        return worker

    def _resume(self, size: int, restored: int) -> None:
        """All of them are new; `restored`: how many read the checkpoint, the others get the state from these."""
        parts = [part for member in self.members for part in member.parts]
        newest = max(part.step for part in parts)
        chosen = [part for part in parts if part.step == newest and part.generation == self._generation]
        batch = self._config.trainer.global_batch_size
        checkpoint = assemble(chosen, run_id=RunId("run-1"), term=Term(1), global_batch_size=batch, created_at="2026-01-01T00:00:00.000Z")
        self.members = [self._joining() for _ in range(size)]
        for member in self.members[:restored]:
            member.trainer.restore(checkpoint)
            member.holds = True


def run_generation(members: Sequence[Worker], turn: Turn, generation: int, *, again: bool) -> list[RunOutcome | None]:
    """Share the state, then train, each member in a thread of its own. Raises what one of them raised."""
    holding = [member.trainer.step for member in members if member.holds]
    newest = max(holding)
    donors = tuple(rank for rank, member in enumerate(members) if member.holds and member.trainer.step == newest)
    move = StateMove(donors, tuple(rank for rank in range(len(members)) if rank not in donors))
    store = ThreadStore()
    ends: list[Any] = [None] * len(members)

    def live(rank: int) -> None:
        member = members[rank]
        collective = RankCollective(generation=generation, rank=rank, world_size=len(members), device="cpu", timeout_s=HANG_S)
        collective.turn, collective.mark = turn, member.mark
        torch.set_num_threads(1)
        with turn.taken():
            try:
                collective.connect(store)
                member.trainer.share(collective, move, {}, holds_own=member.holds)
                member.holds = True
                ends[rank] = member.trainer.run(collective, again=again)
                member.trainer.finish()
            except CollectiveBroken as broken:
                ends[rank] = broken
            except BaseException as error:  # noqa: BLE001 - raised again by who waits for all
                ends[rank] = error
            finally:
                if isinstance(ends[rank], BaseException):
                    collective.leave()

    threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * HANG_S)
        if thread.is_alive():
            raise TimeoutError(f"a rank of generation {generation} hangs")
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, CollectiveBroken):
            raise end
    return [None if isinstance(end, CollectiveBroken) else end for end in ends]


def train(case: Case) -> Group:
    """Play a case; the group as it is at the end. Raises what the engine raises."""
    sizes = exchange.FIRST_BUCKET_BYTES, exchange.BUCKET_BYTES
    exchange.FIRST_BUCKET_BYTES = exchange.BUCKET_BYTES = 200  # so that small models have several
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                group = Group(case)
                group.train()
            except TimeoutError:
                # On a machine with many more processes than cores Gloo's connections time out now and then. What hangs by itself hangs again.
                group = Group(case)
                group.train()
            return group
    finally:
        exchange.FIRST_BUCKET_BYTES, exchange.BUCKET_BYTES = sizes
        torch.use_deterministic_algorithms(False)
