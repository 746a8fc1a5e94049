"""Which checkpoints go: pure decisions, before they are named in the trash and once more before they are deleted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from launcher.checkpoint.catalog import CheckpointInfo
from launcher.core.types import Term
from launcher.record.lineage import TermBase


def expired(
    everything: Collection[CheckpointInfo],
    belonging: Sequence[CheckpointInfo],
    *,
    keep: int,
    bases: Mapping[Term, TermBase],
    pins: Collection[str],
    newest_whole: CheckpointInfo,
) -> list[CheckpointInfo]:
    """The checkpoints to delete, oldest first.

    Of those that belong to the run, all but the newest `keep`. Of the others (a fenced controller wrote them, or training
    was rolled back behind them) those that training has passed: until then it may come to the same chunks again, and a
    chunk that is named in the trash cannot be committed. Never one that a base names, that is pinned, or `newest_whole`,
    the newest that is known to be whole.
    """
    kept = set(sorted(belonging, key=lambda info: (info.step, info.term), reverse=True)[: max(keep, 1)])
    foreign = set(everything) - set(belonging)
    candidates = (set(belonging) - kept) | {info for info in foreign if info.step <= newest_whole.step}
    going = candidates - protected(candidates, bases=bases, pins=pins) - {newest_whole}
    return sorted(going, key=lambda info: (info.step, info.term))


def protected(
    checkpoints: Collection[CheckpointInfo], *, bases: Mapping[Term, TermBase], pins: Collection[str]
) -> frozenset[CheckpointInfo]:
    """Those that a base names or that are pinned. A base names a step of an earlier term; it protects every earlier term's."""
    named = {(term, base.checkpoint_step) for term, base in bases.items() if base.checkpoint_step is not None}
    return frozenset(
        info for info in checkpoints if info.key in pins or any(info.step == step and info.term < term for term, step in named)
    )
