"""Distributed training with elastic GPU jobs."""

__version__ = "0.1.0"
