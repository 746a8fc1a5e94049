"""An observer of the engine that only lets it train; what a benchmark wants to know it overrides."""

from __future__ import annotations

from typing import Any


class QuietObserver:
    def applied(self, record: Any) -> None: ...

    def doing(self, what: str) -> None: ...

    def flags(self) -> Any:
        from launcher.training.step import StepFlags

        return StepFlags()

    def evaluated(self, step: int, metrics: dict[str, float]) -> None: ...

    def saved(self, part: Any, seconds: float) -> None: ...

    def save_failed(self, step: int, generation: int, error: Exception) -> None:
        raise error
