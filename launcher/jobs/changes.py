"""The size of a worker group and a change of it in words, as every surface says them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.record.desired import WorkerBounds
from launcher.record.status import RunStatus

PARTS = (("detect_s", "detect"), ("agree_s", "agree"), ("form_s", "form"), ("move_s", "move"), ("first_step_s", "first step"))
"""What the time of a change goes into, in its order."""
CAUSES = {
    "resize": "asked for",
    "lost": "a worker was lost",
    "evicted": "a worker was given up",
    "held": "below the lower bound",
    "save": "the last checkpoint is saved again",
}
"""What a cause means, where the change gives no reason of its own."""
_BAR = 32


def workers_words(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def size_words(workers: WorkerBounds) -> str:
    """What is wanted: 3 workers, or 3 workers (2..6) where the bounds leave room."""
    return workers_words(workers.target) + _room(workers)


def crew(status: RunStatus) -> str:
    """How many workers there are and, where that differs, are wanted, the bounds, the generation, what is missing."""
    target = status.workers.target
    if status.world_size > target:
        words = f"{workers_words(status.world_size)}, {target} wanted{_room(status.workers)}"
    else:
        words = ("" if status.world_size == target else f"{status.world_size} of ") + size_words(status.workers)
    words += f", generation {status.generation}" if status.generation else ""
    return f"{words}, waits for {status.waiting_for}" if status.waiting_for else words


def change_sentence(change: Mapping[str, Any]) -> str:
    """A change of the group, such as RunStatus.last_change: sizes, step, cause, pause, what the time went into, how survivors fared.

    3 -> 4 workers at step 1200 (grow: asked for): pause 0.05 s; agree 0.01, form 0.02, first step 0.21 s; ...
    """
    figures = _figures(change)
    return f"{_what(change)}: {'; '.join(figures)}" if figures else _what(change)


def change_bar(change: Mapping[str, Any]) -> str:
    """The parts of a change to scale, each drawn with the letter of its (last) word, and the time in all; "" without figures."""
    parts = _parts(change)
    whole = sum(seconds for _, seconds in parts)
    if whole <= 0:
        return ""
    drawn = "".join(label.split()[-1][0] * max(1, round(_BAR * seconds / whole)) for label, seconds in parts)
    total = _number(change.get("total_s"))
    return drawn + (f"  {short_seconds(total)} s in all" if total is not None else "")


def short_seconds(value: float) -> str:
    """0.004, 0.25, 12.3: as many digits as anybody compares."""
    return f"{value:.3f}" if value < 0.01 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _room(workers: WorkerBounds) -> str:
    return "" if workers.min == workers.max else f" ({workers.min}..{workers.max})"


def _what(change: Mapping[str, Any]) -> str:
    before, after, step = change.get("from_size"), change.get("to_size"), change.get("step")
    cause = str(change.get("cause") or "")
    reason = str(change.get("reason") or CAUSES.get(cause, ""))
    sizes = f"{after} workers, as before" if before == after else f"{before} -> {after} workers"
    why = f"{cause}: {reason}" if cause and reason else cause or reason
    return sizes + (f" at step {step}" if step is not None else "") + (f" ({why})" if why else "")


def _figures(change: Mapping[str, Any]) -> list[str]:
    pause, slowdown = _number(change.get("pause_s")), _number(change.get("slowdown"))
    parts = ", ".join(f"{label} {short_seconds(seconds)}" for label, seconds in _parts(change))
    said = [f"pause {short_seconds(pause)} s"] if pause is not None else []
    said += [f"{parts} s"] if parts else []
    said += [f"survivors at {100 * slowdown:.0f} % speed while newcomers warmed up"] if slowdown is not None else []
    return said


def _parts(change: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(label, seconds) for key, label in PARTS if (seconds := _number(change.get(key))) is not None]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
