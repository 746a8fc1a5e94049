"""The shell's surface: verbs, tables, progress."""

HYDRA_VERBS = ("train", "plan", "doctor")
"""Verbs that are Hydra applications; the others are click commands."""
