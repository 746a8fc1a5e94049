"""One worker's program: build, then train generation after generation from where the state is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, Protocol

from launcher.checkpoint.manifest import CheckpointManifest, CheckpointPart
from launcher.checkpoint.reader import read_checkpoint
from launcher.config.schema import JobConfig
from launcher.core.types import JsonObject
from launcher.record.run_store import RunStore
from launcher.training.comm.collective import Collective
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.data.batches import Batch
from launcher.training.data.feed import TrainingFeed
from launcher.training.device import use_deterministic_algorithms, use_threads
from launcher.training.evaluate import evaluate
from launcher.training.parts import build_parts
from launcher.training.reduce.exact_exchange import ExactExchange
from launcher.training.reduce.exchange import Exchange
from launcher.training.reduce.gradient_exchange import GradientExchange
from launcher.training.shards.batch import BatchPlan
from launcher.training.single_values import single_values_explained
from launcher.training.state.checkpoint_saver import CheckpointSaver
from launcher.training.state.document import StateDocument
from launcher.training.state.train_state import MODEL
from launcher.training.state.transfer import StateHeader, StateMove, share_state
from launcher.training.step import BuffersBegan, StepFlags, StepResult, TrainingStep, check_finite
from launcher.training.warm_up import WarmUp, try_a_step


@dataclass(frozen=True)
class StepRecord:
    """One applied step, the same on every rank but for `seconds`."""

    step: int
    """The state after it: the first step has 1."""
    loss: float
    """Mean over what counts in the batch."""
    metrics: dict[str, float]
    """Means over what counts in the batch."""
    seconds: float
    """How long it took, waiting for data and for the other ranks included."""
    grad_norm: float | None
    """Before clipping; None where nothing is clipped."""


class Observer(Protocol):
    """Told of what happens, on every rank."""

    def applied(self, record: StepRecord) -> None:
        """A step was applied. Called for every one, between steps: be quick."""
        ...

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Means over the held-out split, with "loss" among them."""
        ...

    def saved(self, part: CheckpointPart, seconds: float) -> None:
        """This rank's part of a checkpoint is durable, `seconds` after it was taken. Called on the saving thread."""
        ...

    def save_failed(self, step: int, generation: int, error: Exception) -> None:
        """This rank's part of the checkpoint of `step` could not be stored. Called on the saving thread or the training one."""
        ...

    def doing(self, what: Literal["training", "evaluating", "saving"]) -> None:
        """What comes next may take longer than a step."""
        ...

    def flags(self) -> StepFlags:
        """What to tell the other ranks with the next step; asked once a step."""
        ...


class RunOutcome(Enum):
    """Why a generation ended in order; one that broke raises CollectiveBroken instead."""

    FINISHED = "finished"
    """All steps are done."""
    STOPPED = "stopped"
    """Some rank was asked to stop."""
    SWITCHED = "switched"
    """Every rank knows the decision to go over to another generation."""
    HELD = "held"
    """The state is saved, and the group is too small to train."""


class Trainer:
    """Call `build`, then `restore` or `initialise` where there is something to begin from; then for each generation `share` and `run`."""

    def __init__(self, config: JobConfig, run: RunStore, observer: Observer, *, device: str, threads: int | None) -> None:
        self._config = config
        self._run = run
        self._observer = observer
        self._device = device
        self._threads = threads
        self._warm_up: WarmUp | None = None
        self._exchange: Exchange | None = None
        self._entered = 0
        """The newest generation."""
        self.step = 0
        """Steps applied."""
        self.total_steps = 0
        self.data_size = 0
        self.progress = 0
        """Grows with every forward pass; may be read from another thread."""

    def build(self) -> None:
        """Import and build model, data, task, optimizer and scheduler, and see that they fit together.

        Raises ConfigError or UserCodeError where they do not; what the user's own code raises comes out unchanged.
        """
        use_threads(self._threads)
        if self._config.elastic.exact:
            use_deterministic_algorithms()
        self._parts = build_parts(self._config, self._device)
        self.data_size, self.total_steps = len(self._parts.train), self._parts.total_steps
        self._saver = CheckpointSaver(self._run, self._observer.saved, self._observer.save_failed)

    def warm_up(self) -> WarmUp:
        """Try a forward and backward pass, and decide whether shards may share one. Leaves no trace in the state.

        Raises what the first step would: UserCodeError, and what the user's own code raises.
        """
        config, parts = self._config, self._parts
        # What a collate_fn makes of a shard may have another form in the next one, which a trial of two would not show.
        uneven = parts.train.collates and config.trainer.fuse == "auto"
        fused = BatchPlan(
            global_batch_size=config.trainer.global_batch_size,
            micro_batch_size=config.trainer.micro_batch_size,
            width=1 if uneven else config.fused_shards,
        )
        self._count_forward()
        with single_values_explained(config.trainer):
            trial = try_a_step(parts, fused, config, self._device)
        self._count_forward()
        warm_up = trial.warm_up if not uneven else WarmUp(False, "one shard at a time: the data set has a collate_fn of its own")
        self._plan = fused if warm_up.fused else replace(fused, width=1)
        self._step = TrainingStep(
            parts,
            trial,
            self._plan,
            seed=config.seed,
            grad_clip_norm=config.trainer.grad_clip_norm,
            device=self._device,
            on_forward=self._count_forward,
        )
        parts.objective.changes_inputs = trial.changes_inputs
        parts.state.track(trial.buffers, trial.attributes, trial.repeated)
        self._found = frozenset(trial.buffers)
        self._warm_up = warm_up
        return warm_up

    def restore(self, manifest: CheckpointManifest) -> None:
        """Take model, optimizer, scheduler and step from a checkpoint of this run. Raises CheckpointCorrupt, ConfigError."""
        tensors, state = read_checkpoint(self._run, manifest)
        document = StateDocument.from_json(state)
        self._parts.state.load(tensors, document)
        self.step = self._saver.last_step = document.step

    def initialise(self, run: RunStore, manifest: CheckpointManifest) -> None:
        """Take the model alone from a checkpoint of some run. Raises CheckpointCorrupt."""
        tensors, _ = read_checkpoint(run, manifest)
        self._parts.state.load_model(tensors)

    def prepare_to_receive(self) -> None:
        """Have the memory for another rank's state before that rank has to wait for it."""
        self._parts.state.prepare_to_receive()

    def share(self, collective: Collective, move: StateMove, records: JsonObject, *, holds_own: bool) -> JsonObject:
        """Give the state to those ranks of a new generation that need it, or take it; the records are those of the first donor.

        holds_own: the state of this rank is worth keeping until another one has arrived whole.
        Raises CollectiveBroken and StateDamaged.
        """
        state = self._parts.state
        own = StateHeader(state.document(self.step), records)
        taken = share_state(collective, move, state, own, device=self._device, holds_own=holds_own)
        self.step = taken.document.step
        return taken.records

    def run(self, collective: Collective, *, again: bool = False, save: bool = False) -> RunOutcome:
        """Train from `step` to `total_steps` as one rank of a generation whose ranks all hold that state.

        again: the generation before ended in the middle, perhaps before what belongs to this step was done; it is done now.
        save: begin with a checkpoint.
        Saved and evaluated where it returns FINISHED, saved where STOPPED. Raises CollectiveBroken when the generation ended:
        the step in flight is not applied. Raises TrainingDiverged; what the user's own code raises comes out unchanged.
        """
        self._enter(collective)
        try:
            if save or (again and self._due(self._config.checkpoint.every_steps)):
                self._save(collective)
            if again and self._due(self._config.trainer.eval_every_steps):
                self._evaluate(collective)
            return self._train_until_end(collective)
        except CollectiveBroken:
            collective.leave()
            raise

    def hold(self, collective: Collective) -> RunOutcome:
        """Save, so that the state outlives this group, which is too small to train."""
        self._enter(collective)
        self._save_and_wait(collective)
        return RunOutcome.HELD

    def finish(self) -> None:
        """Wait until what is being saved is durable, and let the processes that read end."""
        self._saver.wait()
        if self._parts.reading is not None:
            self._parts.reading.end()

    def _enter(self, collective: Collective) -> None:
        """Have the exchange and the feed of this generation; they are made in the first one."""
        if self._warm_up is None:
            self.warm_up()
        if self._exchange is None:
            self._exchange = self._make_exchange(collective)
            parts = self._parts
            self._feed = TrainingFeed(parts.train, parts.order, self._plan, end=self.total_steps, processes=parts.reading)
        self._exchange.use(collective)
        self._step.begin_generation(self._exchange)
        if not self._found.issuperset(self._parts.state.buffers):
            self._unfuse()
        self._feed.begin(self._plan.forwards(collective.world_size, collective.rank))
        if 0 < self._entered < collective.generation:
            self._saver.last_step = None  # whether all ranks' parts became a checkpoint is not known here
        self._entered = collective.generation

    def _make_exchange(self, collective: Collective) -> Exchange:
        parameters = list(self._parts.model.parameters())
        if self._config.elastic.exact:
            return ExactExchange(parameters, collective, shards=self._plan.shards)
        return GradientExchange(parameters, collective)

    def _due(self, every_steps: int | None) -> bool:
        return every_steps is not None and 0 < self.step < self.total_steps and self.step % every_steps == 0

    def _train_until_end(self, collective: Collective) -> RunOutcome:
        trainer, checkpoint = self._config.trainer, self._config.checkpoint
        exchange = self._exchange
        assert exchange is not None
        while self.step < self.total_steps:
            collective.check()
            began = time.perf_counter()
            result = self._take_step(collective, exchange, self._observer.flags())
            self.step += 1
            self._observer.applied(StepRecord(self.step, result.loss, result.metrics, time.perf_counter() - began, result.grad_norm))
            if self._due(trainer.eval_every_steps):
                self._evaluate(collective)
            if result.stop and self.step < self.total_steps:
                self._save_and_wait(collective)
                return RunOutcome.STOPPED
            if self._due(checkpoint.every_steps):
                self._save(collective)
            if result.switch and self.step < self.total_steps:
                return RunOutcome.SWITCHED
        self._evaluate(collective)
        self._save_and_wait(collective)
        return RunOutcome.FINISHED

    def _take_step(self, collective: Collective, exchange: Exchange, flags: StepFlags) -> StepResult:
        while True:
            try:
                return self._step.run(self.step, self._feed.forwards, self._batches, exchange, flags)
            except BuffersBegan as began:
                self._step.track_also(began.names)
                self._unfuse()
                self._feed.begin(self._plan.forwards(collective.world_size, collective.rank))

    def _unfuse(self) -> None:
        """Where buffers change that did not in the trial, it could not see whether shards may share a forward pass."""
        if self._config.trainer.fuse != "on":
            self._plan = replace(self._plan, width=1)

    def _batches(self) -> Iterator[Batch]:
        """Of this step, one for each forward pass; once more, where the step is computed again."""
        return self._feed.step(self.step)

    def _evaluate(self, collective: Collective) -> None:
        chunk = self._config.fused_shards * self._config.trainer.micro_batch_size
        self._observer.doing("evaluating")
        metrics = evaluate(
            self._parts.objective,
            self._parts.test,
            collective,
            chunk=chunk,
            device=self._device,
            processes=self._parts.reading,
            on_forward=self._count_forward,
        )
        self._observer.evaluated(self.step, metrics)
        self._observer.doing("training")

    def _save(self, collective: Collective) -> None:
        self._observer.doing("saving")
        tensors = self._parts.state.tensors()
        check_finite(tensors, self.step, {MODEL + name for name, _ in self._parts.model.named_buffers()})
        self._saver.save(tensors, self._parts.state.document(self.step).to_json(), self.step, collective)
        self._observer.doing("training")

    def _save_and_wait(self, collective: Collective) -> None:
        """The last checkpoint of a run decides whether it can go on: a failure is raised."""
        if self._saver.last_step != self.step:
            self._save(collective)
        self._observer.doing("saving")
        error = self._saver.wait()
        self._observer.doing("training")
        if error is not None:
            raise error

    def _count_forward(self) -> None:
        self.progress += 1
