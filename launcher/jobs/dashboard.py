"""Where the pages of a run are served."""

from __future__ import annotations

from launcher.backends.base import Dashboard
from launcher.core.errors import BackendUnavailable
from launcher.jobs.observe import backend_of
from launcher.jobs.refs import RunRef


def dashboard(ref: RunRef) -> Dashboard:
    """Raises BackendUnavailable while none is up."""
    run = ref.open()
    page = backend_of(run).dashboard(run)
    if page is None:
        raise BackendUnavailable(
            "no dashboard is up for this run",
            where=ref.uri,
            expected="it is up while jobs run here, and a while after",
            next=f"`launch status {ref.name}`, `launch logs {ref.name}` and `launch events {ref.name}` read the record",
        )
    return page
