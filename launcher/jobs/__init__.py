"""The use cases that the shell and the notebook share. No torch, no Ray, no Hydra until a use case needs one."""

from launcher.jobs.observe import dashboard, list_runs, status, watch
from launcher.jobs.records import events, logs, metrics
from launcher.jobs.refs import RunRef, default_runs, find
from launcher.jobs.resizing import follow_resize, resize
from launcher.jobs.resuming import resume
from launcher.jobs.stopping import stop
from launcher.jobs.submitting import Plan, plan, submit

__all__ = [
    "Plan",
    "RunRef",
    "dashboard",
    "default_runs",
    "events",
    "find",
    "follow_resize",
    "list_runs",
    "logs",
    "metrics",
    "plan",
    "resize",
    "resume",
    "status",
    "stop",
    "submit",
    "watch",
]
