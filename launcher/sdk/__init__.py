"""The notebook's surface: submit, attach, Run."""

from launcher.sdk.run import Run, attach, submit

__all__ = ["Run", "attach", "submit"]
