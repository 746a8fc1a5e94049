"""`python -m launcher.runtime.pod.prestop FOLDER DEADLINE_S`: what a pod does before it is ended: its workers leave in time, and no new one comes.

Kubernetes tells a pod's first process alone that the pod goes, and Ray's own answer to it ends the workers beneath a step. So this runs
before that: Ray drains the node, which the controller sees and turns into a planned shrink; then it waits until the workers have ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.core.process import ProcessRef

WORKERS_FOLDER = "LAUNCHER_WORKERS"
"""Variable that names the folder in which the workers of a pod say who they are."""
POLL_S = 0.1
HEAD_S = 2.0
"""So long a head may take to answer at all; Ray's own client waits 40 seconds for one, longer than there may be time to leave."""
PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's autoscaler.proto: also a node at work is drained."""


def say_here(node_id: str, gcs_address: str) -> None:
    """Called by a worker: this process is one, on this node of the Ray at host:port."""
    folder = os.environ.get(WORKERS_FOLDER)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        document = {"process": ProcessRef.of(os.getpid()).to_json(), "node_id": node_id, "gcs_address": gcs_address}
        partial = Path(folder, f".{os.getpid()}")
        partial.write_text(json.dumps(document))
        partial.rename(Path(folder, f"{os.getpid()}.json"))


def main(arguments: Sequence[str]) -> int:
    folder, deadline_s = Path(arguments[0]), float(arguments[1])
    until = time.monotonic() + deadline_s
    workers = _workers(folder)
    if not workers:
        return 0
    described = workers[0]
    try:
        _drain(described["gcs_address"], described["node_id"], deadline_s)
    except Exception as error:  # noqa: BLE001 - Ray's head is away: the workers themselves are told, and tell the next controller
        print(f"the node cannot be drained: {error}", file=sys.stderr)
        for each in _workers(folder):
            ProcessRef.from_json(each["process"]).signal(signal.SIGTERM)
    while _workers(folder) and time.monotonic() < until:
        time.sleep(POLL_S)
    return 0


def _drain(gcs_address: str, node_id: str, deadline_s: float) -> None:
    host, _, port = gcs_address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), HEAD_S).close()
    import ray._raylet

    client = ray._raylet.GcsClient(address=gcs_address)
    deadline_ms = int((time.time() + deadline_s) * 1000)
    accepted, why = client.drain_node(node_id, PREEMPTION, "the pod is being ended", deadline_ms)
    if not accepted:
        raise RuntimeError(why)


def _workers(folder: Path) -> list[Any]:
    described = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [each for each in described if ProcessRef.from_json(each["process"]).alive()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
