"""`python -m launcher.runtime.pod.prestop FOLDER DEADLINE_S`: its workers leave before a pod is ended. Runs in the pod, as its preStop hook.

Kubernetes tells a pod's first process alone that the pod goes, and Ray's own answer to it ends the workers beneath a step. So this runs
before that: Ray drains the node, so that no new worker comes, and the controller sees it and turns it into a planned shrink; then it waits
until the workers have ended. `say_here` is for the workers themselves.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from launcher.core.process import ProcessRef

WORKERS_FOLDER = "LAUNCHER_WORKERS"
"""Variable that names the folder in which the workers of a pod say who they are."""
POLL_S = 0.1
HEAD_S = 2.0
"""So long a head may take to answer at all; Ray's own client waits 40 seconds for one, longer than there may be time to leave."""
PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's autoscaler.proto: also a node at work is drained."""


class PodWorker(msgspec.Struct, frozen=True):
    """A worker of this pod, as its file says it."""

    process: ProcessRef
    node_id: str
    """Of Ray's node, in hexadecimal."""
    gcs_address: str
    """host:port of the Ray."""


def say_here(node_id: str, gcs_address: str) -> None:
    """Called by a worker: this process is one, on this node of the Ray at host:port. Nothing where the pod has no folder for it."""
    folder = os.environ.get(WORKERS_FOLDER)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        worker = PodWorker(ProcessRef.of(os.getpid()), node_id, gcs_address)
        partial = Path(folder, f".{os.getpid()}")
        partial.write_bytes(msgspec.json.encode(worker))
        partial.rename(Path(folder, f"{os.getpid()}.json"))


def main(arguments: Sequence[str]) -> int:
    folder, deadline_s = Path(arguments[0]), float(arguments[1])
    until = time.monotonic() + deadline_s
    workers = living_workers(folder)
    if not workers:
        return 0
    try:
        drain(workers[0].gcs_address, workers[0].node_id, deadline_s)
    except Exception as error:  # noqa: BLE001 - Ray's head is away: the workers themselves are told, and tell the next controller
        print(f"the node cannot be drained: {error}", file=sys.stderr)
        for worker in living_workers(folder):
            worker.process.signal(signal.SIGTERM)
    while living_workers(folder) and time.monotonic() < until:
        time.sleep(POLL_S)
    return 0


def drain(gcs_address: str, node_id: str, deadline_s: float) -> None:
    """Have Ray drain a node within the deadline. Raises OSError where no head answers, RuntimeError where it refuses."""
    host, _, port = gcs_address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), HEAD_S).close()
    import ray._raylet

    client = ray._raylet.GcsClient(address=gcs_address)
    deadline_ms = int((time.time() + deadline_s) * 1000)
    accepted, why = client.drain_node(node_id, PREEMPTION, "the pod is being ended", deadline_ms)
    if not accepted:
        raise RuntimeError(why)


def living_workers(folder: Path) -> list[PodWorker]:
    """Workers of the pod whose process still runs."""
    described = [msgspec.json.decode(path.read_bytes(), type=PodWorker) for path in sorted(folder.glob("*.json"))]
    return [worker for worker in described if worker.process.alive()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
