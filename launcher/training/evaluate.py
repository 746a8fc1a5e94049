"""Evaluation on the held-out split, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from launcher.training.comm.collective import Collective
from launcher.training.data.feed import evaluation_batches
from launcher.training.data.reading_processes import ReadingProcesses
from launcher.training.data.samples import Samples
from launcher.training.left_as_it_was import left_as_it_was
from launcher.training.objective import Objective
from launcher.training.shards.batch import share


def evaluate(
    objective: Objective,
    samples: Samples,
    collective: Collective,
    *,
    chunk: int,
    device: str,
    processes: ReadingProcesses | None,
    on_forward: Callable[[], None],
) -> dict[str, float]:
    """Means over the whole split of the loss ("loss") and of the task's metrics, the same on every rank; NaN where nothing counts.

    The split is cut into chunks of `chunk` samples whatever the world size, so that only the order of the last sum depends on it.
    `processes` read ahead; None: samples are read on the spot.
    """
    model = objective.model
    training = model.training
    model.eval()
    sums = torch.zeros(2 + 2 * len(objective.metric_names or ()), dtype=torch.float64, device=device)
    owned = share(-(-len(samples) // chunk), collective.world_size, collective.rank)
    chunks = [range(index * chunk, min((index + 1) * chunk, len(samples))) for index in owned]
    try:
        with torch.no_grad(), left_as_it_was(model):
            for batch in evaluation_batches(samples, chunks, processes):
                on_forward()
                sums += objective(batch)[1].double()
    finally:
        model.train(training)
    collective.all_reduce(sums).wait()
    loss, _, metrics = objective.means(sums.tolist())
    return {"loss": loss, **metrics}
