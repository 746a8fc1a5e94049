"""What a worker's main thread does, and how fast: written by it, read by the heartbeat. Pure."""

from __future__ import annotations

SMOOTHING = 0.2
"""Weight of the newest step in the means."""


class Activity:
    def __init__(self) -> None:
        self.phase = "building"
        """building, ready, loading, training, evaluating, saving, waiting, released or failed."""
        self.last_step_at: float | None = None
        """On the monotonic clock."""
        self.busy_s: float | None = None
        """Seconds of a step in which this rank computes and does not wait for others, smoothed."""
        self.step_s: float | None = None
        """Seconds of a whole step, smoothed."""
        self._waited_s = 0.0

    @property
    def ready(self) -> bool:
        """A generation may be formed with this worker."""
        return self.phase not in ("building", "failed")

    def first_step(self, waited_s: float) -> None:
        """The first step in a generation: it is cold, and what another group needed says nothing of this one.

        `waited_s`: seconds that the generation's group has waited for others so far.
        """
        self._waited_s, self.busy_s, self.step_s = waited_s, None, None

    def stepped(self, seconds: float, waited_s: float) -> None:
        """Another step, which took `seconds`; `waited_s` as in `first_step`."""
        busy, self._waited_s = max(0.0, seconds - (waited_s - self._waited_s)), waited_s
        self.busy_s = _smoothed(self.busy_s, busy)
        self.step_s = _smoothed(self.step_s, seconds)


def _smoothed(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + SMOOTHING * (newest - mean)
