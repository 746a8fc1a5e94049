"""The bounds of the run's own RayCluster on Kubernetes follow those in force. Runs in the controller, on a thread of its own.

So do the bounds of what guards the pods from a drain. Both are patched with the account of the controller's pod. The RayCluster is never
applied again: its `replicas` belong to Ray's autoscaler, and a list of groups that is applied replaces all of them. A `test` in the patch
sees to it that the group at this place is the one that is meant.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from launcher.core.types import JsonObject, RunId
from launcher.record.desired import WorkerBounds

GROUP_INDEX = 0
RETRY_S = 2.0
TIMEOUT_S = 10
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def pod_bounds(bounds: WorkerBounds, workers: int) -> WorkerBounds:
    """Of the pods: a pod whose worker still lives is never one too many, because the autoscaler would end it without notice."""
    return WorkerBounds(min=bounds.min, max=max(bounds.max, workers), target=bounds.target)


def group_patch(bounds: WorkerBounds, group: str) -> list[JsonObject]:
    """JSON Patch (RFC 6902) for a RayCluster."""
    place = f"/spec/workerGroupSpecs/{GROUP_INDEX}"
    return [
        {"op": "test", "path": f"{place}/groupName", "value": group},
        {"op": "replace", "path": f"{place}/minReplicas", "value": bounds.min},
        {"op": "replace", "path": f"{place}/maxReplicas", "value": bounds.max},
    ]


class Patches(Protocol):
    def patch(self, bounds: WorkerBounds) -> None:
        """Raises OSError or the client's own error when the API server does not do it."""
        ...


class PodPatches:
    """From inside a pod of the RayCluster, with the pod's own account."""

    def __init__(self, run_id: RunId, group: str) -> None:
        from kubernetes import client, config

        config.load_incluster_config()  # type: ignore[no-untyped-call]
        self._custom, self._policy = client.CustomObjectsApi(), client.PolicyV1Api()
        self._run_id, self._group = run_id, group
        self._namespace, self._cluster = NAMESPACE_FILE.read_text(), os.environ["RAY_CLUSTER_NAME"]

    def patch(self, bounds: WorkerBounds) -> None:
        self._custom.patch_namespaced_custom_object(
            "ray.io",
            "v1",
            self._namespace,
            "rayclusters",
            self._cluster,
            group_patch(bounds, self._group),
            _content_type="application/json-patch+json",
            _request_timeout=TIMEOUT_S,
        )
        budget = {"spec": {"minAvailable": bounds.min}}
        self._policy.patch_namespaced_pod_disruption_budget(self._run_id, self._namespace, budget, _request_timeout=TIMEOUT_S)


class PodBounds:
    """Keeps the cluster at the newest bounds that are wanted; what fails is tried again until it is done."""

    def __init__(self, patches: Callable[[], Patches], failed: Callable[[str], None], *, retry_s: float = RETRY_S) -> None:
        """`patches` is made on the thread, `failed` called there: once for several failures in a row, with the first one's words."""
        self._patches, self._failed, self._retry_s = patches, failed, retry_s
        self._changed = threading.Condition()
        self._wanted: WorkerBounds | None = None
        self._done: WorkerBounds | None = None
        self._ended = False
        threading.Thread(target=self._serve, name="pod-bounds", daemon=True).start()

    def want(self, bounds: WorkerBounds) -> None:
        with self._changed:
            if bounds != self._wanted:
                self._wanted = bounds
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _serve(self) -> None:
        patches: Patches | None = None
        told = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._wanted != self._done)
                wanted = self._wanted
                if self._ended or wanted is None:
                    return
            try:
                patches = patches or self._patches()
                patches.patch(wanted)
            except Exception as error:  # noqa: BLE001 - whatever the client makes of an API server that is away
                if not told:
                    self._failed(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
                told = True
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, self._retry_s)
                continue
            self._done, told = wanted, False
