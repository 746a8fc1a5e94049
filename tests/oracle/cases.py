"""Cases: a job and what happens to it, as plain data that JSON can hold; how they are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.oracle.models import KINDS as MODEL_KINDS
from tests.oracle.models import ModelPlan, kinds, plans
from tests.oracle.optimizers import GROUPS, OPTIMIZERS, SCHEDULERS, TAKES_SPARSE

KINDS = (*MODEL_KINDS, "sparse embedding", "nests and own losses", "weighted samples", "parameter groups", "mixed")
"""What a case is about; "mixed": everything at once, but for sparse embeddings."""
HISTORIES = ("one rank", "several ranks", "grow", "shrink", "reorder", "kill", "resume", "several changes")


NO_LAYERS = ModelPlan()
"""But the head."""


@dataclass(frozen=True)
class Change:
    """What happens to the group of ranks, after `step` steps or in the middle of the next one."""

    kind: str
    """ "resize": between two steps; "kill": a rank leaves its collective in the middle; "resume": all stop, new ones go on from
    the checkpoint."""
    step: int
    size: int
    """Ranks from then on."""
    turn: int = 0
    """By how many places the members move up in the order of ranks; also who is killed."""
    event: int = 0
    """Of a kill: at which call or end of a call of the step's collective."""
    sharing: bool = False
    """Of a kill: it comes as soon as this group begins, while those who join get the state."""


@dataclass(frozen=True)
class Case:
    """A job and its history."""

    model: ModelPlan = NO_LAYERS
    steps: int = 3
    shards: int = 2
    """V, of a batch."""
    micro: int = 3
    """Samples of a shard."""
    samples: int = 17
    """Of the training data."""
    optimizer: str = "SGD"
    setting: int = 0
    """Index in OPTIMIZERS."""
    groups: str = "one"
    scheduler: str | None = None
    grad_clip_norm: float | None = None
    precision: str = "fp64"
    """ "fp64" (parameters), "fp32", or "bf16" (autocast)."""
    exact: bool = False
    weighted: bool = False
    eval_every_steps: int | None = None
    seed: int = 0
    ranks: int = 1
    """At the beginning."""
    changes: tuple[Change, ...] = ()

    @property
    def most_ranks(self) -> int:
        return max([self.ranks, *(change.size for change in self.changes)])

    @property
    def history(self) -> str:
        """One of HISTORIES."""
        if not self.changes:
            return "one rank" if self.ranks == 1 else "several ranks"
        if len(self.changes) > 1:
            return "several changes"
        [change] = self.changes
        if change.kind != "resize":
            return change.kind
        return "grow" if change.size > self.ranks else "shrink" if change.size < self.ranks else "reorder"


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    """Cases of a kind of KINDS; the simplest first."""
    model = draw(plans(kind))
    sparse = model.embedding == "sparse"
    micro = draw(st.integers(3, 4) if "batch norm" in kinds(model) else st.integers(1, 4))
    shards = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8]))
    steps = draw(st.integers(2, 5))
    name = draw(st.sampled_from([*TAKES_SPARSE] if sparse else [*OPTIMIZERS]))
    setting = draw(st.integers(0, (TAKES_SPARSE[name] if sparse else len(OPTIMIZERS[name])) - 1))
    groups = draw(st.sampled_from(GROUPS[1:] if kind == "parameter groups" else GROUPS if kind == "mixed" else GROUPS[:1]))
    ranks, changes = draw(histories(shards, steps))
    return Case(
        model=model,
        steps=steps,
        shards=shards,
        micro=micro,
        samples=draw(st.integers(7, 30)),
        optimizer=name,
        setting=setting,
        groups=groups,
        scheduler=draw(st.none() | st.sampled_from(SCHEDULERS)),
        grad_clip_norm=None if sparse else draw(st.sampled_from([None, 0.1, 10.0])),
        precision=draw(precisions(name, model, groups)),
        exact=draw(st.booleans()),
        weighted=kind == "weighted samples" or (kind == "mixed" and draw(st.booleans())),
        eval_every_steps=draw(st.sampled_from([None, 2])),
        seed=draw(st.integers(0, 2**32 - 1)),
        ranks=ranks,
        changes=changes,
    )


def precisions(optimizer: str, model: ModelPlan, groups: str) -> st.SearchStrategy[str]:
    """Where a result hangs on the sign of a number that rounding decides, only double precision tells anything."""
    if optimizer in ("Rprop", "Adafactor") or "expert" in kinds(model):
        return st.just("fp64")
    return st.sampled_from(["fp64", "fp64", "fp32", "bf16"])


@st.composite
def histories(draw: st.DrawFn, shards: int, steps: int) -> tuple[int, tuple[Change, ...]]:
    """The ranks at the beginning, and the changes, in the order of their steps."""
    sizes = st.sampled_from([size for size in (1, 2, 3, 4, 2, 3) if size <= shards])
    first = size = draw(sizes)
    count = min(draw(st.sampled_from([0, 1, 2, 3, 1, 1])), steps - 1)
    at = sorted(draw(st.permutations(range(steps)))[:count])
    changes = []
    for step in at:
        possible = ["resize", "resume"] * (step > 0) + ["kill"] * (size > 1)
        if not possible:
            continue
        kind, new = draw(st.sampled_from(possible)), draw(sizes)
        event = draw(st.integers(0, 6)) if kind == "kill" else 0
        sharing = kind == "kill" and draw(st.booleans())
        changes.append(Change(kind, step, new, draw(st.integers(0, size - 1)), event, sharing))
        size = new
    return first, tuple(changes)


def settings_of(case: Case) -> dict[str, Any]:
    """What the case's optimizer is made with, beside the parameters."""
    return {"name": case.optimizer, "groups": case.groups, **OPTIMIZERS[case.optimizer][case.setting]}
