from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from launcher.checkpoint.manifest import CheckpointManifest, CheckpointPart, assemble
from launcher.core.errors import CheckpointAbandoned, CheckpointCorrupt
from launcher.core.types import Generation, Step, Term
from tests.unit.checkpoint.parts import RUN, manifest_of, part

pytestmark = pytest.mark.unit


def test_parts_and_manifests_are_strict_json() -> None:
    odd = replace(part(3, {0: b"x"}, count=1), state={"best": math.inf, "list": [1, -math.inf, None], "text": "é"})
    sent = json.loads(json.dumps(odd.to_json(), allow_nan=False))
    assert CheckpointPart.from_json(sent) == odd
    other = part(3, {1: b"y"}, rank=1, world_size=2, count=2)
    assert CheckpointPart.from_json(json.loads(json.dumps(other.to_json()))) == other
    manifest = assemble([odd], run_id=RUN, term=Term(2), global_batch_size=8, created_at="now")
    assert manifest.samples == 24
    document = json.loads(json.dumps(manifest.to_json(), allow_nan=False))
    assert CheckpointManifest.from_json({**document, "nonce": "of the one who created it"}) == manifest


def test_a_state_with_numbers_as_keys_fits_its_digest() -> None:
    state = {"optimizer": dict.fromkeys((2, 10), 1)}
    manifest = replace(manifest_of(3, 1, b"x"), state=state)
    read = CheckpointManifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert read.state == {"optimizer": {"2": 1, "10": 1}}


@pytest.mark.parametrize("change", [{"version": 2}, {"step": 4}, {"chunks": []}, {"state": {"step": 4}}, {"tensors": None}])
def test_a_changed_manifest_is_corrupt(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointCorrupt):
        CheckpointManifest.from_json({**manifest_of(3, 1, b"x").to_json(), **change})


def test_no_manifest_of_parts_that_do_not_make_a_whole() -> None:
    first = part(3, {0: b"a"}, rank=0, world_size=2, count=2)
    second = part(3, {1: b"b"}, rank=1, world_size=2, count=2)

    def attempt(*parts: CheckpointPart) -> CheckpointManifest:
        return assemble(parts, run_id=RUN, term=Term(1), global_batch_size=8, created_at="now")

    assert [chunk.index for chunk in attempt(second, first).chunks] == [0, 1]
    wrong = [
        (),
        (first,),
        (second,),
        (first, second, second),
        (first, replace(second, step=Step(4))),
        (first, replace(second, generation=Generation(2))),
        (first, replace(second, chunks=())),
        (first, replace(second, chunks=first.chunks)),
        (first, replace(second, chunk_count=3)),
        (replace(first, state=None), second),
        (replace(first, tensors=None), second),
    ]
    for parts in wrong:
        with pytest.raises(CheckpointAbandoned):
            attempt(*parts)
