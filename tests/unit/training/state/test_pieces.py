"""The cut of a state into pieces, and their digests."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.training.state.piece_digest import WORDS, digest
from launcher.training.state.pieces import ALONE_BYTES, BUNDLE_BYTES, PIECE_BYTES, Slice, StatePiece, TensorLayout, arrival, cut, shares
from launcher.training.state.state_bytes import layouts_of

pytestmark = pytest.mark.unit


def layout(name: str, *shape: int, dtype: str = "float32", same_as: str | None = None) -> TensorLayout:
    strides = tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
    return TensorLayout(name, shape, dtype, strides, on_device=False, same_as=same_as)


elements = st.one_of(st.integers(0, 300), st.integers(ALONE_BYTES // 4 - 2, ALONE_BYTES // 4 + 2), st.integers(0, 3 * PIECE_BYTES))


@given(st.lists(st.tuples(elements, st.sampled_from(["float32", "bool", "float64", "bfloat16"])), max_size=20), st.integers(1, 5))
def test_every_byte_is_in_one_piece_and_every_piece_with_one_donor(sizes: list[tuple[int, str]], donors: int) -> None:
    layouts = [layout(f"t{index}", size, dtype=dtype) for index, (size, dtype) in enumerate(sizes)]
    pieces = cut(layouts)
    end = {item.name: 0 for item in layouts}
    for piece in pieces:
        assert 0 < piece.size_bytes <= PIECE_BYTES
        for part in piece.slices:
            assert part.start == end[part.name] < part.stop
            end[part.name] = part.stop
    assert end == {item.name: item.size_bytes for item in layouts}
    shared = shares(pieces, donors)
    assert sorted(index for indices in shared for index in indices) == list(range(len(pieces)))
    loads = [sum(pieces[index].size_bytes for index in indices) for indices in shared]
    assert max(loads) - min(loads) <= PIECE_BYTES
    taken = arrival(shared)
    assert len(taken) == len(pieces)
    for donor, indices in enumerate(shared):
        assert [index for sender, index in taken if sender == donor] == list(indices)


def test_the_cut_does_not_depend_on_the_order_or_the_layout_in_memory() -> None:
    plain = [layout("a", 8, 4, 100, 100), layout("b", 3), layout("c", 5)]
    last = TensorLayout("a", (8, 4, 100, 100), "float32", (40000, 1, 400, 4), on_device=True)
    assert cut(plain) == cut([plain[2], last, plain[1]])


def test_small_tensors_are_bundled_and_a_large_one_is_cut_evenly() -> None:
    large = PIECE_BYTES // 4 + 16
    pieces = cut([layout("a", 4), layout("b", large), layout("c", 4, dtype="bool")])
    half = -(-(large * 4) // 2 // 64) * 64
    assert pieces == (
        StatePiece((Slice("b", 0, half),)),
        StatePiece((Slice("b", half, large * 4),)),
        StatePiece((Slice("a", 0, 16), Slice("c", 0, 4))),
    )
    many = cut([layout(f"{index:02d}", ALONE_BYTES // 8) for index in range(20)])
    assert [piece.size_bytes for piece in many] == [BUNDLE_BYTES, BUNDLE_BYTES, BUNDLE_BYTES // 2]


def test_nothing_is_sent_for_tied_and_for_empty_tensors() -> None:
    assert cut([layout("a", 2, 2), layout("b", 2, 2, same_as="a"), layout("c", 0, 3)]) == (StatePiece((Slice("a", 0, 16),)),)
    assert arrival(shares((), 3)) == []


def test_layouts_tell_ties_and_the_order_in_memory_and_survive_json() -> None:
    weight = torch.ones(2, 3, 4, 5)
    tensors = {
        "tied": weight,
        "first": weight.detach(),
        "last": weight.to(memory_format=torch.channels_last),
        "gaps": torch.ones(6, 8)[:, 1:5],
        "transposed": torch.ones(6, 8).t(),
        "empty": torch.ones(0, 3, dtype=torch.float64),
        "scalar": torch.tensor(7),
    }
    found = {item.name: item for item in layouts_of(tensors)}
    assert [*found] == sorted(tensors)
    assert found["tied"].same_as == "first"
    assert all(item.same_as is None for name, item in found.items() if name != "tied")
    assert found["last"].strides == (60, 1, 15, 3)
    assert found["gaps"].strides == (4, 1)
    assert found["transposed"].strides == (1, 8)
    assert (found["scalar"].dtype, found["scalar"].size_bytes, found["empty"].size_bytes) == ("int64", 8, 0)
    written = json.dumps(msgspec.to_builtins([*found.values()]))
    assert msgspec.convert(json.loads(written), list[TensorLayout]) == [*found.values()]


def piece(rows: int, rest: int) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (rows * WORDS * 8 + rest,), dtype=torch.uint8, generator=numbers)


@pytest.mark.parametrize(("rows", "rest"), [(0, 0), (0, 5), (1, 0), (3, 77)])
def test_a_digest_depends_on_every_byte_the_length_and_the_index(rows: int, rest: int) -> None:
    data = piece(rows, rest)
    known = {digest(4, data)}
    assert digest(4, data.clone()) in known
    for changed in (digest(5, data), digest(4, torch.cat([data, torch.zeros(1, dtype=torch.uint8)]))):
        assert changed not in known
        known.add(changed)
    for place in range(0, len(data), 4099):
        other = data.clone()
        other[place] ^= 128
        assert digest(4, other) not in known


def test_a_digest_finds_what_was_shifted_and_what_was_zeroed() -> None:
    data = piece(5, 9)
    wrong = [data.roll(1), data.roll(8), torch.cat([data[:100], data[108:], data[:8]]), data.clone().fill_(0)]
    assert len({digest(0, item) for item in [data, *wrong]}) == 5


def test_a_digest_may_be_taken_of_memory_that_is_not_aligned() -> None:
    data = piece(2, 40)
    assert digest(0, torch.cat([data[:3], data])[3:]) == digest(0, data)
