"""Small models of all kinds that users write, put together from blocks: what is drawn at random is a description, `build` makes the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

FEATURES = 6
CHANNELS = 3
TOKENS = 10
CLASSES = 3
MANY = 2**40
"""More than float32 counts."""
Build = Callable[["Block", bool], nn.Module]
"""Of a block, and whether it may compute again in the backward pass."""


@dataclass(frozen=True)
class Block:
    """One layer of a model; takes and gives (n, FEATURES). What a block of a kind does with the other fields stands at its module."""

    kind: str
    p: float = 0.5
    step: int = 0
    flag: bool = False
    inner: tuple[Block, ...] = ()


@dataclass(frozen=True)
class ModelPlan:
    """A whole model."""

    blocks: tuple[Block, ...] = ()
    embedding: str = "none"
    """Where its input comes from: "none" (numbers), or tokens through a "dense" or "sparse" embedding."""
    returns: str = "scores"
    """ "scores" (n, CLASSES), a "nest" with them in it, or its own "losses" beside them."""


def build(plan: dict[str, Any] | ModelPlan, double: bool = False, recompute: bool = True) -> nn.Module:
    """`plan`: also as JSON has it; `recompute`: False computes nothing again in the backward pass, which changes no result."""
    plan = msgspec.convert(plan, ModelPlan) if isinstance(plan, dict) else plan
    model = Model(plan, recompute)
    return model.double() if double else model


class Model(nn.Module):
    """Called with inputs (n, FEATURES), tokens (n, 2) and labels (n,)."""

    def __init__(self, plan: ModelPlan, recompute: bool) -> None:
        super().__init__()
        self.returns = plan.returns
        self.embedding = None if plan.embedding == "none" else nn.Embedding(TOKENS, FEATURES, sparse=plan.embedding == "sparse")
        self.trunk = nn.Sequential(*(BLOCKS[block.kind](block, recompute) for block in plan.blocks))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, tokens: Tensor, labels: Tensor) -> Any:
        hidden = self.trunk(x if self.embedding is None else x + self.embedding(tokens).sum(1))
        scores = self.head(hidden)
        if self.returns == "nest":
            return {"hidden": (hidden, [hidden.detach()]), "scores": scores}
        if self.returns == "losses":
            losses = functional.cross_entropy(scores.float() if scores.dtype == torch.bfloat16 else scores, labels, reduction="none")
            return {"losses": losses + 0.1 * hidden.square().mean(1), "scores": scores}
        return scores


class Dense(nn.Module):
    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Reshaped(nn.Module):
    """A layer that wants (n, channels, …)."""

    def __init__(self, layer: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.layer = layer
        self.shape = (CHANNELS, FEATURES // CHANNELS, 1, 1)[: dimensions - 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(len(x), *self.shape)).reshape(x.shape)


class OwnDropout(nn.Module):
    """Random operators of torch; flag: also adds noise."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(x, self.block.p, self.training)
        return x + 0.1 * torch.randn_like(x) if self.training and self.block.flag else x


class Average(nn.Module):
    """A running mean of what it sees after its first `step` calls, which takes part in what it gives; flag: not persistent."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(FEATURES), persistent=not block.flag)
        self.register_buffer("seen", torch.tensor(MANY), persistent=not block.flag)
        self.begins_at = MANY + block.step

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.seen >= self.begins_at:
            self.level = 0.8 * self.level + 0.2 * x.detach().mean(0).to(self.level.dtype)
        if self.training:
            self.seen += 1
        return x * (1 + self.level.to(x.dtype))


class Counter(nn.Module):
    """Counts its calls in a plain attribute, which takes part in what it gives."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x / (1 + 0.1 * self.calls)


class Twice(nn.Module):
    """One weight, used in two places; flag: by two layers that hold the same parameter, instead of one layer that is called twice."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = self.first
        if block.flag:
            self.second = nn.Linear(FEATURES, FEATURES)
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))


class Unused(nn.Module):
    """A parameter that takes no part."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Expert(nn.Module):
    """A layer for samples with a large first number, which are few: often no sample of a shard, or of the whole batch, reaches it."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.threshold = block.p

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0] > self.threshold
        return x.index_put((rows,), torch.tanh(self.linear(x[rows]))) if rows.any() else x


class Frozen(nn.Module):
    """Frozen from a step on; flag: frozen when it is built, and trained from that step on. p < 0.5: counts in a plain attribute."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES).requires_grad_(not block.flag)
        self.thaws, self.step = block.flag, block.step
        if block.p < 0.5:
            self.calls = 0
        else:
            self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.step:
                self.linear.requires_grad_(self.thaws)
        return torch.tanh(self.linear(x))


class Recomputed(nn.Module):
    """Computes its inner blocks again in the backward pass; flag: by another backward pass inside (use_reentrant). p < 0.5: twice over."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(*(BLOCKS[each.kind](each, recompute) for each in block.inner))
        self.reentrant, self.times = block.flag, 2 if block.p < 0.5 else 1
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            if not (self.recompute and self.training and torch.is_grad_enabled()):
                x = self.inner(x)
                continue
            if self.reentrant and not x.requires_grad:
                x = x.detach().requires_grad_()  # else torch gives its parameters no gradient
            x = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return x


class Normalised(nn.Module):
    """A layer whose weight is computed from others: by its largest singular value (which it keeps in buffers); flag: by its norm."""

    def __init__(self, block: Block, recompute: bool) -> None:
        super().__init__()
        normalise = parametrizations.weight_norm if block.flag else parametrizations.spectral_norm
        self.linear = normalise(nn.Linear(FEATURES, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


def _batch_norm(block: Block, recompute: bool) -> nn.Module:
    """p < 0.25: a cumulative mean; flag: BatchNorm2d."""
    momentum = None if block.p < 0.25 else 0.1
    norm = Reshaped(nn.BatchNorm2d(CHANNELS, momentum=momentum), 4) if block.flag else nn.BatchNorm1d(FEATURES, momentum=momentum)
    return nn.Sequential(norm, nn.Tanh())  # a bias just before another norm has no gradient but rounding


def _dropout(block: Block, recompute: bool) -> nn.Module:
    """step: 0 drops numbers, 1 to 3 whole channels."""
    kind = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[block.step]
    return Reshaped(kind(block.p), block.step + 2) if block.step else kind(block.p)


def _alpha_dropout(block: Block, recompute: bool) -> nn.Module:
    return nn.AlphaDropout(block.p)


BLOCKS: dict[str, Build] = {
    "dense": Dense,
    "batch norm": _batch_norm,
    "dropout": _dropout,
    "alpha dropout": _alpha_dropout,
    "own dropout": OwnDropout,
    "average": Average,
    "counter": Counter,
    "twice": Twice,
    "unused": Unused,
    "expert": Expert,
    "frozen": Frozen,
    "recomputed": Recomputed,
    "normalised": Normalised,
}
BY_SHARD = {"batch norm", "dropout", "alpha dropout", "own dropout", "average"}
"""Kinds of blocks for which it matters how the batch is cut into shards."""


def kinds(plan: ModelPlan) -> set[str]:
    """The kinds of all blocks, those inside others too."""

    def below(blocks: tuple[Block, ...]) -> set[str]:
        return {block.kind for block in blocks}.union(*(below(block.inner) for block in blocks))

    return below(plan.blocks)


def by_shard(plan: ModelPlan) -> bool:
    """Whether the model is trained by `train_on_shards`."""
    return bool(kinds(plan) & BY_SHARD)


DENSE = st.just(Block("dense"))
DROPOUT_P = st.sampled_from([0.5, 0.1, 0.3])
DROPOUT = st.builds(Block, st.just("dropout"), p=st.sampled_from([0.5, 0.1, 0.3, 1.0, 0.0]), step=st.integers(0, 3))
BATCH_NORM = st.builds(Block, st.just("batch norm"), p=st.sampled_from([0.5, 0.1]), flag=st.booleans())
OWN_RANDOM = st.builds(Block, st.just("own dropout"), p=DROPOUT_P, flag=st.booleans()) | st.builds(
    Block, st.just("alpha dropout"), p=DROPOUT_P
)
AVERAGE = st.builds(Block, st.just("average"))
LATE_AVERAGE = st.builds(Block, st.just("average"), step=st.integers(1, 2))
NOT_PERSISTENT = st.builds(Block, st.just("average"), flag=st.just(True))
COUNTER = st.just(Block("counter"))
TWICE = st.builds(Block, st.just("twice"), flag=st.booleans())
UNUSED = st.just(Block("unused"))
EXPERT = st.builds(Block, st.just("expert"), p=st.sampled_from([0.5, 0.0, 0.8]))
FREEZES = st.builds(Block, st.just("frozen"), p=st.sampled_from([0.5, 0.1]), step=st.integers(2, 4))
THAWS = st.builds(Block, st.just("frozen"), p=st.sampled_from([0.5, 0.1]), step=st.integers(2, 4), flag=st.just(True))
NORMALISED = st.builds(Block, st.just("normalised"), flag=st.booleans())


def _recomputed(inner: st.SearchStrategy[Block], *, reentrant: bool, twice: bool) -> st.SearchStrategy[Block]:
    p = st.sampled_from([0.1] if twice else [0.5])
    return st.builds(
        Block,
        st.just("recomputed"),
        p=p,
        flag=st.just(reentrant),
        inner=st.lists(inner, max_size=2).map(lambda blocks: (Block("dense"), *blocks)),
    )


PLAIN_INSIDE = DENSE | TWICE | NORMALISED.filter(lambda block: block.flag)
RANDOM_INSIDE = DROPOUT | BATCH_NORM | OWN_RANDOM
KINDS: dict[str, st.SearchStrategy[Block]] = {
    "dense": DENSE,
    "batch norm": BATCH_NORM,
    "dropout": DROPOUT,
    "own random operators": OWN_RANDOM,
    "buffers": AVERAGE,
    "buffers that change later": LATE_AVERAGE,
    "non-persistent buffers": NOT_PERSISTENT,
    "attributes": COUNTER,
    "normalised weights": NORMALISED,
    "shared weights": TWICE,
    "unused parameters": UNUSED,
    "used by chance": EXPERT,
    "freezes": FREEZES,
    "thaws": THAWS,
    "recomputed": _recomputed(PLAIN_INSIDE, reentrant=False, twice=False) | _recomputed(PLAIN_INSIDE, reentrant=True, twice=False),
    "recomputed batch norm": _recomputed(BATCH_NORM, reentrant=False, twice=False) | _recomputed(BATCH_NORM, reentrant=True, twice=False),
    "recomputed dropout": _recomputed(DROPOUT | OWN_RANDOM, reentrant=False, twice=False)
    | _recomputed(DROPOUT | OWN_RANDOM, reentrant=True, twice=False),
    "recomputed shared weights": _recomputed(PLAIN_INSIDE, reentrant=False, twice=True)
    | _recomputed(PLAIN_INSIDE, reentrant=True, twice=True),
}
"""What each kind of case has in its model, beside dense layers."""


def plans(kind: str) -> st.SearchStrategy[ModelPlan]:
    """Models of a kind of KINDS; "mixed": of blocks of all kinds."""
    own = st.one_of(*KINDS.values()) if kind == "mixed" else KINDS.get(kind, DENSE)
    blocks = st.lists(own | DENSE, min_size=1, max_size=4 if kind == "mixed" else 3)
    if kind in KINDS:
        blocks = st.tuples(st.lists(DENSE, max_size=1), own, st.lists(own | DENSE, max_size=1)).map(
            lambda parts: [*parts[0], parts[1], *parts[2]]
        )
    embeddings = {"sparse embedding": ["sparse"], "mixed": ["none", "dense"]}.get(kind, ["none"])
    returns = {"nests and own losses": ["losses", "nest"], "mixed": ["scores", "losses", "nest"]}.get(kind, ["scores"])
    return st.builds(ModelPlan, blocks.map(tuple), st.sampled_from(embeddings), st.sampled_from(returns))
