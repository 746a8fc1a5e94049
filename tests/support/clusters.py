"""A Ray of several nodes on one machine, with this process as its driver; nodes can be added, drained and killed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import launcher

HANG_S = 60.0
"""After so many seconds a wait has failed."""


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """A ray.cluster_utils.Cluster with its head; its folder, in which Ray also notes the address of the newest cluster, is its own."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # short: Ray's sockets lie in it
    (folder / "ray").mkdir()
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(launcher.__file__).resolve().parents[1]),
    }
    before = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, environment):
        import ray
        from ray.cluster_utils import Cluster

        # Ray read the environment when it was imported, which a test's module may have done long ago.
        ray._raylet.Config.initialize('{"AUTH_MODE": "token"}')
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=cluster.address, namespace="tests", log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            signal.signal(signal.SIGTERM, before)
            shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], object], what: str, *, within_s: float = HANG_S) -> None:
    """Raises AssertionError, with `what`, where the condition does not become true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
