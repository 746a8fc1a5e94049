"""Jobs of every kind do what a plain PyTorch loop does, whatever happens to their workers; and the cases notice what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import torch

from tests.oracle.cases import KINDS, Case
from tests.oracle.mutations import MUTATIONS, WITHOUT_MUTATION, Mutation
from tests.oracle.processes import Task, search_all
from tests.oracle.random_numbers import DropoutByShard, draw, mix
from tests.oracle.search import Found

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(300)]
CASES_WITH_A_MUTATION = 60


def one(results: Iterable[Found]) -> Found:
    [found] = results
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_leaves_what_a_plain_loop_leaves(kind: str) -> None:
    found = one(search_all([Task(kind, seed=0)], processes=1))
    assert found.smallest is None, str(found)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_without_a_rule_some_case_fails(mutation: Mutation) -> None:
    task = Task(mutation.kind, seed=0, count=CASES_WITH_A_MUTATION, shrinking_s=0.0, mutation=mutation.name)
    found = one(search_all([task], processes=1))
    assert found.smallest is not None, f"no case of the kind {mutation.kind!r} notices"
    assert found.failure.startswith("Difference: "), f"it crashed, which says nothing of what it computes: {found.failure}"
    print(f"{mutation.name}: case {sum(found.played.values())}, {found.failure}")


def test_kinds_of_mutations_are_kinds_of_cases() -> None:
    named = {mutation.kind for mutation in MUTATIONS} | {kind for kinds in WITHOUT_MUTATION.values() for kind in kinds}
    assert named <= set(KINDS)


def test_the_plain_loops_know_nothing_of_launcher() -> None:
    code = "import sys, tests.oracle.plain_loop; sys.exit(any(name.partition('.')[0] == 'launcher' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_case_is_played_again_from_its_json() -> None:
    command = [sys.executable, "-m", "tests.oracle", "--case", json.dumps({"shards": 3, "ranks": 2})]
    played = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (played.returncode, played.stdout[:22]) == (0, "as in the plain loop: ")
    assert msgspec.json.decode(msgspec.json.encode(Case()), type=Case) == Case()


def test_numbers_of_a_stream_are_those_of_splitmix64() -> None:
    """The first outputs of the generator begun with 0, as its authors publish them; each gives four numbers, the lowest bits first."""
    outputs = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    wanted = [(output >> (16 * place)) & 0xFFFF for output in outputs for place in range(4)]
    assert [number & 0xFFFF for number in draw(0, 10).tolist()] == wanted[:10]
    assert mix(0) == outputs[0]


def test_a_mask_is_of_one_shard_layer_and_call() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.5), torch.nn.Dropout2d(0.5))
    masks = DropoutByShard(model, seed=1)
    x = torch.ones(4, 6, 2, 2)
    masks.begin(0, 0)
    first, again, other = model[0](x), model[0](x), model[1](x)
    channels = model[2](x).flatten(2)
    assert {float(value) for value in first.unique()} == {0.0, 2.0}
    assert not torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(channels, channels[..., :1].expand_as(channels))
    masks.begin(0, 1)
    assert not torch.equal(first, model[0](x))
    masks.begin(0, 0)
    assert torch.equal(first, model[0](x))
