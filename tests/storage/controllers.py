"""A process that takes over again and again against others, as controllers do: claim, look, base, save, until its time is up.

`python -m tests.storage.controllers URI HOLDER TURNS`
"""

from __future__ import annotations

import json
import random
import sys
import time

from launcher.checkpoint.catalog import commit_manifest, list_checkpoints
from launcher.checkpoint.chunks import blob_key, digest_of
from launcher.checkpoint.manifest import CheckpointPart, ChunkRef, assemble
from launcher.core.store import open_store
from launcher.core.types import Generation, Rank, RunId, Step, Term, WorldSize
from launcher.record.lineage import TermBase, lineage
from launcher.record.run_store import RunStore

RUN = RunId("r1")


def save(run: RunStore, term: Term, step: int, holder: str) -> bool:
    data = f"{holder} {term} {step}".encode()
    run.store.put(run.key(blob_key(digest_of(data))), data)
    part = CheckpointPart(
        step=Step(step),
        generation=Generation(1),
        rank=Rank(0),
        world_size=WorldSize(1),
        chunk_count=1,
        chunks=(ChunkRef(0, digest_of(data), len(data)),),
        tensors=(),
        state={"holder": holder},
    )
    return commit_manifest(run, assemble([part], run_id=RUN, term=term, global_batch_size=1, created_at="now"))


def take_turns(run: RunStore, holder: str, turns: int, chance: random.Random) -> list[dict[str, object]]:
    """What this controller believes: the terms it held, and the checkpoints that it reported as committed."""
    beliefs: list[dict[str, object]] = []
    for _ in range(turns):
        term = run.claim_term(holder, "now")
        belief: dict[str, object] = {"term": term, "base": None, "committed": []}
        beliefs.append(belief)
        if chance.random() < 0.2:
            continue  # died between claim and base
        newest = next(iter(list_checkpoints(run, lineage(run.terms()[1]))), None)
        from_term, step = (None, None) if newest is None else (newest.term, newest.step)
        if not run.create_base(term, TermBase(from_term=from_term, checkpoint_step=step, adopted_step=None)):
            raise SystemExit(f"somebody else created the base of term {term}")
        belief["base"] = [from_term, step]
        committed: list[int] = []
        belief["committed"] = committed
        for ahead in range(1, chance.randint(1, 4)):
            reached = (step or 0) + ahead
            if not save(run, term, reached, holder):
                break  # fenced
            committed.append(reached)
    return beliefs


def main() -> None:
    uri, holder, turns, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    store = open_store(uri, create=True)
    time.sleep(max(0.0, start - time.time()))
    print(json.dumps(take_turns(RunStore(store, RUN), holder, turns, random.Random(holder))))


if __name__ == "__main__":
    main()
