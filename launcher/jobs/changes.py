"""The size of a worker group and a change of it in words, as every surface says them."""

from __future__ import annotations

from launcher.core.types import Step
from launcher.record.desired import WorkerBounds
from launcher.record.members import ResizeFacts
from launcher.record.status import RunStatus

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


def change_sentence(change: ResizeFacts, step: Step | None = None) -> str:
    """A change of the group, at a step: sizes, step, cause, pause, what the time went into, how survivors fared.

    3 -> 4 workers at step 1200 (grow: asked for): pause 0.05 s; agree 0.01, form 0.02, first step 0.21 s; ...
    """
    figures = _figures(change)
    return f"{_what(change, step)}: {'; '.join(figures)}" if figures else _what(change, step)


def change_bar(change: ResizeFacts) -> str:
    """The parts of a change to scale, each drawn with the letter of its (last) word, and the time in all; "" without figures."""
    parts = _parts(change)
    whole = sum(seconds for _, seconds in parts)
    if whole <= 0:
        return ""
    drawn = "".join(label.split()[-1][0] * max(1, round(_BAR * seconds / whole)) for label, seconds in parts)
    return drawn + (f"  {short_seconds(change.total_s)} s in all" if change.total_s is not None else "")


def short_seconds(value: float) -> str:
    """0.004, 0.25, 12.3: as many digits as anybody compares."""
    return f"{value:.3f}" if value < 0.01 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _room(workers: WorkerBounds) -> str:
    return "" if workers.min == workers.max else f" ({workers.min}..{workers.max})"


def _what(change: ResizeFacts, step: Step | None) -> str:
    before, after, cause = change.from_size, change.to_size, change.cause
    reason = change.reason or CAUSES.get(cause, "")
    sizes = f"{after} workers, as before" if before == after else f"{before} -> {after} workers"
    why = f"{cause}: {reason}" if cause and reason else cause or reason
    return sizes + (f" at step {step}" if step is not None else "") + (f" ({why})" if why else "")


def _figures(change: ResizeFacts) -> list[str]:
    parts = ", ".join(f"{label} {short_seconds(seconds)}" for label, seconds in _parts(change))
    said = [f"pause {short_seconds(change.pause_s)} s"] if change.pause_s is not None else []
    said += [f"{parts} s"] if parts else []
    said += [f"survivors at {100 * change.slowdown:.0f} % speed while newcomers warmed up"] if change.slowdown is not None else []
    return said


def _parts(change: ResizeFacts) -> list[tuple[str, float]]:
    """What the time of a change went into, in its order."""
    parts = (
        ("detect", change.detect_s),
        ("agree", change.agree_s),
        ("form", change.form_s),
        ("move", change.move_s),
        ("first step", change.first_step_s),
    )
    return [(label, seconds) for label, seconds in parts if seconds is not None]
