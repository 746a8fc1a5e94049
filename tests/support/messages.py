"""Every message between controller and worker, made up by Hypothesis from its type."""

from __future__ import annotations

from types import UnionType
from typing import get_args

from hypothesis import strategies as st
from msgspec import UNSET

from launcher.checkpoint.manifest import CheckpointPart, ChunkRef, TensorMeta
from launcher.core.types import Generation, Rank, Step, WorldSize
from launcher.record.rows import MetricsRow
from launcher.runtime.protocol import messages as m

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | st.integers() | NUMBERS | st.text()
DOCUMENTS = st.dictionaries(st.text(), PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(), PLAIN, max_size=3), max_size=4)
"""JSON objects, e.g. a scheduler's state."""
COUNTS = st.integers(0, 2**70)

PARTS = st.builds(
    CheckpointPart,
    step=COUNTS.map(Step),
    generation=COUNTS.map(Generation),
    rank=COUNTS.map(Rank),
    world_size=COUNTS.map(WorldSize),
    chunk_count=COUNTS,
    chunks=st.lists(st.builds(ChunkRef, COUNTS, st.text(), COUNTS), max_size=3).map(tuple),
    tensors=st.none() | st.lists(st.builds(TensorMeta, st.text(), st.lists(COUNTS).map(tuple), st.text()), max_size=3).map(tuple),
    state=st.none() | DOCUMENTS,
)

st.register_type_strategy(float, NUMBERS)  # JSON has no word for the others, and no message says one
ROWS = st.builds(
    MetricsRow,
    step=COUNTS.map(Step),
    time=st.text(),
    seconds=NUMBERS,
    loss=st.none() | NUMBERS,
    samples_per_s=st.none() | NUMBERS,
    grad_norm=st.just(UNSET) | st.none() | NUMBERS,
    metrics=st.dictionaries(st.text(), st.none() | NUMBERS, max_size=3),
)
BUILDERS = {
    m.Row: st.builds(m.Row, first=COUNTS.map(Step), generation=COUNTS.map(Generation), row=ROWS),
    m.Saved: st.builds(m.Saved, seconds=NUMBERS, document=PARTS.map(CheckpointPart.to_json)),
}


def kinds(union: UnionType) -> list[type[m.Message]]:
    return list(get_args(union))


def messages(kind: type[m.Message]) -> st.SearchStrategy[m.Message]:
    return BUILDERS[kind] if kind in BUILDERS else st.from_type(kind)
