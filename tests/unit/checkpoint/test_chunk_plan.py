from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.checkpoint.chunk_plan import ELEMENT_BYTES, TensorMeta, parse_piece_key, piece_key, plan_chunks, share
from launcher.core.errors import UserCodeError

pytestmark = pytest.mark.unit

tensors = st.lists(
    st.builds(
        TensorMeta,
        name=st.text(min_size=1, max_size=4),
        shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
        dtype=st.sampled_from(sorted(ELEMENT_BYTES)),
    ),
    unique_by=lambda meta: meta.name,
    max_size=12,
)


@given(tensors, st.integers(8, 300), st.randoms())
def test_the_plan_covers_every_element_once_within_the_limit(metas: list[TensorMeta], max_bytes: int, random: Random) -> None:
    plan = plan_chunks(metas, max_bytes)
    by_name = {meta.name: meta for meta in metas}
    covered: dict[str, int] = dict.fromkeys(by_name, 0)
    for pieces in plan:
        assert pieces
        assert len({piece.name for piece in pieces}) == len(pieces)
        assert sum((piece.stop - piece.start) * ELEMENT_BYTES[by_name[piece.name].dtype] for piece in pieces) <= max_bytes
        for piece in pieces:
            assert piece.start == covered[piece.name] < piece.stop
            covered[piece.name] = piece.stop
    assert covered == {meta.name: meta.elements for meta in metas}
    random.shuffle(metas)
    assert plan_chunks(metas, max_bytes) == plan


def test_a_large_tensor_keeps_its_pieces_when_a_small_one_before_it_grows() -> None:
    large = TensorMeta("large", (100,), "uint8")
    plans = [plan_chunks([TensorMeta("a", (size,), "uint8"), large], 40) for size in (1, 30)]
    assert plans[0][1:] == plans[1][1:]


def test_a_dtype_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(UserCodeError, match=r"state weight(.|\n)*complex128"):
        plan_chunks([TensorMeta("weight", (2,), "complex128")])


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 7))
def test_shares_give_every_chunk_to_one_rank_evenly(sizes: list[int], world_size: int) -> None:
    shares = share(sizes, world_size)
    assert len(shares) == world_size
    assert sorted(index for indices in shares for index in indices) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in indices) for indices in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


@given(st.text(), st.integers(0, 10**12))
def test_piece_keys_read_back(name: str, start: int) -> None:
    assert parse_piece_key(piece_key(name, start)) == (name, start)
