"""One worker's program: build, then train generation after generation from where the state is."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from launcher.config.schema import Component, JobConfig
from launcher.core.errors import ConfigError, UserCodeError
from launcher.core.types import JsonObject
from launcher.record.run_store import RunStore
from launcher.training.comm.transport import CollectiveBroken
from launcher.training.components import build
from launcher.training.data.data_order import DataOrder
from launcher.training.data.samples import Samples, TrainingFeed, read_forward
from launcher.training.device import use_deterministic_algorithms, use_threads
from launcher.training.evaluate import evaluate
from launcher.training.reduce.exact_exchange import ExactExchange
from launcher.training.reduce.exchange import Exchange
from launcher.training.reduce.gradient_exchange import GradientExchange
from launcher.training.shards.batch import BatchPlan, total_steps
from launcher.training.shards.per_shard import PerShardLayers
from launcher.training.shards.tracked_buffers import TrackedBuffers
from launcher.training.state.checkpoint_saver import CheckpointSaver
from launcher.training.state.train_state import TrainState
from launcher.training.state.transfer import StateMove, share_state
from launcher.training.step import Objective, StepFlags, TrainingStep
from launcher.training.warm_up import TrialStep, WarmUp

if TYPE_CHECKING:
    from launcher.checkpoint.manifest import CheckpointManifest, CheckpointPart
    from launcher.training.comm.collective import Collective

TOTAL_STEPS = "total_steps"
"""As a value among the scheduler's parameters: the number of steps of the whole training."""
RECORDS = "records"
"""In the header that goes with the state: what the ranks keep of the steps done."""
SAMPLES_CHECKED = 2
"""How many samples the model is tried on before anything else."""


@dataclass(frozen=True)
class StepRecord:
    step: int
    """The state after it: the first step has 1."""
    loss: float
    """Mean over the samples of the batch."""
    metrics: dict[str, float]
    """Means over the samples of the batch."""
    seconds: float
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
        """This rank's part of a checkpoint is durable, so long after its step. Comes from the saving thread."""
        ...

    def save_failed(self, step: int, generation: int, error: Exception) -> None: ...

    def doing(self, what: Literal["training", "evaluating", "saving"]) -> None:
        """What comes next may take longer than a step."""
        ...

    def flags(self) -> StepFlags:
        """What to say to the other ranks with the next step; asked once a step."""
        ...


class RunOutcome(Enum):
    FINISHED = "finished"
    STOPPED = "stopped"
    SWITCHED = "switched"
    """Every rank knows the decision to go over to another generation."""
    HELD = "held"


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
        config = self._config
        use_threads(self._threads)
        if config.elastic.exact:
            use_deterministic_algorithms()
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)
        torch.manual_seed(config.seed)
        self._build_data()
        self._task = build(config.task, key="task")
        model = build(config.model, key="model")
        if not isinstance(model, torch.nn.Module):
            raise UserCodeError(
                "the model is not a torch.nn.Module", where="model._target_", given=type(model).__name__, expected="a torch.nn.Module"
            )
        self._model = model.to(self._device)
        self._objective = Objective(self._model, self._task, precision=config.trainer.precision, device=self._device)
        self._check_output()
        self._model.train()
        self._layers = PerShardLayers(self._model, seed=config.seed, micro_batch_size=config.trainer.micro_batch_size, device=self._device)
        self._build_optimizer()
        self._saver = CheckpointSaver(self._run, self._observer.saved, self._observer.save_failed)

    def warm_up(self) -> WarmUp:
        """Try a forward and backward pass, and decide whether shards may share one. Leaves no trace in the state."""
        config = self._config
        full = BatchPlan(
            global_batch_size=config.trainer.global_batch_size,
            micro_batch_size=config.trainer.micro_batch_size,
            width=config.fused_shards,
        )
        pair = min(2, full.width)
        shards = [self._read(full, range(index, index + 1)) for index in range(pair)]
        together = self._read(full, range(2)) if pair == 2 else None
        objective = Objective(self._model, self._task, precision="fp32", device=self._device)
        self._count_forward()
        try:
            trial = TrialStep(objective, self._layers, seed=config.seed).run(
                shards, together, config.trainer.fuse, exact=config.elastic.exact
            )
        except RuntimeError as error:
            if config.elastic.exact and "deterministic implementation" in str(error):
                raise UserCodeError(
                    "torch has no deterministic algorithm for an operator of the job",
                    where="elastic.exact",
                    given=str(error).partition(".")[0],
                    expected="operators that give the same bits each time",
                    next="use another operator, or elastic.exact=false",
                ) from error
            raise
        self._count_forward()
        self._plan = full if trial.warm_up.fused else replace(full, width=1)
        self._step = TrainingStep(
            self._objective,
            self._layers,
            TrackedBuffers(self._model, trial.buffers),
            self._optimizer,
            self._scheduler,
            self._plan,
            seed=config.seed,
            grad_clip_norm=config.trainer.grad_clip_norm,
            on_forward=self._count_forward,
        )
        self._warm_up = trial.warm_up
        return trial.warm_up

    def restore(self, manifest: CheckpointManifest) -> None:
        """Take model, optimizer, scheduler and step from a checkpoint of this run. Raises CheckpointCorrupt."""
        from launcher.checkpoint.reader import read_checkpoint

        tensors, document = read_checkpoint(self._run, manifest)
        self.step = self._state.load(tensors, document)
        self._saver.last_step = self.step

    def initialise(self, run: RunStore, manifest: CheckpointManifest) -> None:
        """Take the model alone from a checkpoint of some run. Raises CheckpointCorrupt."""
        from launcher.checkpoint.reader import read_checkpoint

        tensors, _ = read_checkpoint(run, manifest)
        self._state.load_model(tensors)

    def prepare_to_receive(self) -> None:
        """Have the memory for another rank's state before that rank has to wait for it."""
        self._state.prepare_to_receive()

    def share(self, collective: Collective, move: StateMove, records: JsonObject, *, holds_own: bool) -> JsonObject:
        """Give the state to those ranks of a new generation that need it, or take it; the records are those of the first donor.

        holds_own: the state of this rank is worth keeping until another one has arrived whole.
        Raises CollectiveBroken and StateDamaged.
        """
        header: JsonObject = {**self._state.document(self.step), RECORDS: records}
        taken: Any = share_state(collective, move, self._state, header, device=self._device, holds_own=holds_own)
        self.step = int(taken["step"])
        return dict(taken[RECORDS])

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
        """Wait until what is being saved is durable."""
        self._saver.wait()

    def _enter(self, collective: Collective) -> None:
        if self._warm_up is None:
            self.warm_up()
        if self._exchange is None:
            self._exchange = self._make_exchange(collective)
            self._feed = TrainingFeed(self._train, self._order, self._plan, end=self.total_steps)
        self._exchange.use(collective)
        self._feed.begin(self._plan.forwards(collective.world_size, collective.rank))
        if 0 < self._entered < collective.generation:
            self._saver.last_step = None  # whether all ranks' parts became a checkpoint is not known here
        self._entered = collective.generation

    def _make_exchange(self, collective: Collective) -> Exchange:
        parameters = [item for item in self._model.parameters() if item.requires_grad]
        if self._config.elastic.exact:
            return ExactExchange(parameters, collective, shards=self._plan.shards)
        return GradientExchange(parameters, collective)

    def _due(self, every_steps: int | None) -> bool:
        return every_steps is not None and 0 < self.step < self.total_steps and self.step % every_steps == 0

    def _train_until_end(self, collective: Collective) -> RunOutcome:
        trainer, checkpoint = self._config.trainer, self._config.checkpoint
        exchange, feed = self._exchange, self._feed
        assert exchange is not None
        forwards = self._plan.forwards(collective.world_size, collective.rank)
        while self.step < self.total_steps:
            collective.check()
            began = time.perf_counter()
            sums = self._step.compute(self.step, forwards, feed.step(self.step), exchange, self._observer.flags())
            norm = self._step.apply(sums, self.step + 1)
            self.step += 1
            self._observer.applied(StepRecord(self.step, sums.loss, sums.metrics, time.perf_counter() - began, norm))
            if self._due(trainer.eval_every_steps):
                self._evaluate(collective)
            if sums.stop and self.step < self.total_steps:
                self._save_and_wait(collective)
                return RunOutcome.STOPPED
            if self._due(checkpoint.every_steps):
                self._save(collective)
            if sums.switch and self.step < self.total_steps:
                return RunOutcome.SWITCHED
        self._evaluate(collective)
        self._save_and_wait(collective)
        return RunOutcome.FINISHED

    def _evaluate(self, collective: Collective) -> None:
        chunk = self._config.fused_shards * self._config.trainer.micro_batch_size
        self._observer.doing("evaluating")
        metrics = evaluate(self._objective, self._test, collective, chunk=chunk, device=self._device, on_forward=self._count_forward)
        self._observer.evaluated(self.step, metrics)
        self._observer.doing("training")

    def _save(self, collective: Collective) -> None:
        self._observer.doing("saving")
        self._saver.save(self._state.tensors(), self._state.document(self.step), self.step, collective)
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

    def _build_data(self) -> None:
        config = self._config
        try:
            data = build(config.data, key="data")
        except OSError as error:
            raise UserCodeError(
                f"the data cannot be read: {error.strerror or error}",
                where=f"data ({config.data.target})",
                given=str(error.filename or config.data.params),
                expected="files that this worker may read",
            ) from error
        for split in ("train", "test"):
            if not hasattr(data, split):
                raise UserCodeError(
                    f"the data has no {split} split",
                    where="data._target_",
                    given=config.data.target,
                    expected="an object with .train and .test",
                )
        self._train = Samples(data.train, where="data.train", device=self._device)
        self._test = Samples(data.test, where="data.test", device=self._device)
        self.data_size = len(self._train)
        self.total_steps = total_steps(config.trainer, self.data_size)
        self._order = DataOrder(size=self.data_size, seed=config.seed)

    def _check_output(self) -> None:
        batch = self._train.read(np.arange(min(SAMPLES_CHECKED, self.data_size), dtype=np.int64))
        self._model.eval()
        with torch.no_grad(), self._objective.autocast():
            self._task.check(self._model(*self._task.inputs(batch)), batch)
            self._objective(batch)

    def _build_optimizer(self) -> None:
        config = self._config
        parameters = [item for item in self._model.parameters() if item.requires_grad]
        if not parameters:
            raise UserCodeError("the model has no parameters to train", where="model._target_", given=config.model.target)
        self._optimizer = build(config.optimizer, parameters, key="optimizer")
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise ConfigError(
                "it is no optimizer", where="optimizer._target_", given=config.optimizer.target, expected="one of torch.optim"
            )
        schedule = config.scheduler and _with_total_steps(config.scheduler, self.total_steps)
        self._scheduler: Any | None = None
        if schedule is not None:
            self._scheduler = build(schedule, self._optimizer, key="scheduler")
            if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise ConfigError(
                    "the scheduler needs a metric in every step, which is not supported",
                    where="scheduler._target_",
                    given=schedule.target,
                    expected="a scheduler that depends on the step alone",
                )
        self._state = TrainState(self._model, self._optimizer, self._scheduler, config.optimizer, schedule)

    def _read(self, plan: BatchPlan, shards: range) -> tuple[Tensor, ...]:
        return read_forward(self._train, self._order, plan, 0, shards)

    def _count_forward(self) -> None:
        self.progress += 1


def _with_total_steps(component: Component, steps: int) -> Component:
    return replace(component, params={key: steps if value == TOTAL_STEPS else value for key, value in component.params.items()})
