"""Ten thousand schedules of the generation protocol, what they cover, and that each guard is missed by some seed when it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

import pytest

from tests.simulation.__main__ import many
from tests.simulation.coverage import EXPECTED, missing
from tests.simulation.mutations import MUTATIONS, Mutation, first_failure
from tests.simulation.schedule import LEAST

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(900)]
SCHEDULES = 10_000
SEEDS_OF_A_MUTATION = 400


def test_every_schedule_keeps_the_promises_and_together_they_go_through_every_transition() -> None:
    counts: Counter[str] = Counter()
    failed, meagre = [], []
    for result in many(0, SCHEDULES):
        counts.update(result.counts)
        if result.violation:
            failed.append(f"seed {result.seed}: {result.violation[:300]}")
        elif min(result.faults, result.resizes) < LEAST:
            meagre.append(result.seed)
    print(_told(counts))
    assert not failed, "replay with python -m tests.simulation --trace --seed SEED\n" + "\n".join(failed[:20])
    assert not meagre, f"fewer than {LEAST} faults or changes of size: seeds {meagre[:20]}"
    assert not missing(counts), "no schedule went through these"


def _told(counts: Mapping[str, int]) -> str:
    lines = [
        f"{group}: " + ", ".join(f"{name} {counts[f'{group}: {name}']}" for name in names.split()) for group, names in EXPECTED.items()
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_without_a_guard_some_seed_fails(mutation: Mutation) -> None:
    found = first_failure(mutation, range(SEEDS_OF_A_MUTATION))
    assert found is not None, f"no invariant of {sorted(mutation.expected)} misses this guard"
    print(f"{mutation.name}: seed {found.seed}, {found.invariant}")


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    stories = {_story(17, hash_seed) for hash_seed in ("1", "2")}
    assert len(stories) == 1
    assert "all holds" in stories.pop()


def _story(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--trace", "--seed", str(seed)]
    return subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True).stdout
