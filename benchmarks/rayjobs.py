"""A Kubernetes with the KubeRay operator as a benchmark sees it: where it is, its RayJobs and their pods, and the peer's RayJob by hand.

The one of LAUNCHER_KUBECONFIG, described by the same variables as for tests/cluster, in the namespace of its context; else the test cluster of this
machine, in a namespace of the benchmark's own.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.sandbox import PEERS, ROOT, CommandFailed, Done, Sandbox
from launcher.backends.kuberay.rayjob import AUTOSCALER
from launcher.core.errors import LauncherError
from launcher.core.store import ObjectStore, open_store
from tests.cluster.cluster import BUCKET, STORE_SECRET, Cluster, folder
from tests.cluster.images import LAUNCHER

KUBECTL_S = 120.0
GONE_S = 180.0
PEER_FOLDER = "/peer"
STEPS_FOLDER = "/tmp"
"""Where the timed model of a worker writes, in its pod."""
WORKER = "ray-worker"
HEAD_SIZE = {"cpu": "500m", "memory": "3Gi"}
WORKER_SIZE = {"cpu": "500m", "memory": "2Gi", "nvidia.com/gpu": "1"}
READ_STEPS = f"""
import json, pathlib, time
offset = time.time() - time.monotonic()
files = pathlib.Path({STEPS_FOLDER!r}).glob("*.steps")
lines = {{path.stem: [line for line in path.read_text().splitlines(True) if line.endswith("\\n")] for path in files}}
print(json.dumps({{stem: [float(line) + offset for line in found] for stem, found in lines.items()}}))
"""


@dataclass
class KubeRay:
    """Use as a context: at its end every RayJob of the benchmark is gone."""

    sandbox: Sandbox
    kubeconfig: Path = field(init=False)
    namespace: str | None = field(init=False, default=None)
    """None: the one of the kubeconfig's context."""

    def __post_init__(self) -> None:
        token = f"benchmark-{secrets.token_hex(3)}"
        given = os.environ.get("LAUNCHER_KUBECONFIG")
        if given:
            names = ("LAUNCHER_CLUSTER_IMAGE", "LAUNCHER_CLUSTER_SECRET", "LAUNCHER_CLUSTER_RUNS")
            self.image, self.secret, runs = (os.environ[name] for name in names)
            self.kubeconfig = Path(given)
            self.store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        else:
            made = Cluster(folder())
            made.up()
            self.kubeconfig, self.image, self.secret, runs = made.kubeconfig, LAUNCHER, STORE_SECRET, f"s3://{BUCKET}"
            self.store = made.store_environment
            self.namespace = token
        self.runs = f"{runs.rstrip('/')}/{token}"
        os.environ.update(self.store)

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig), **self.store}

    @property
    def words(self) -> list[str]:
        """Of a job of ours."""
        where = [f"backend.image={self.image}", f"backend.secret={self.secret}", f"runs={self.runs}"]
        where += [f"backend.namespace={self.namespace}"] if self.namespace else []
        sizes = [f"backend.head_cpu={HEAD_SIZE['cpu']}", f"backend.head_memory={HEAD_SIZE['memory']}"]
        sizes += [f"backend.cpu={WORKER_SIZE['cpu']}", f"backend.memory={WORKER_SIZE['memory']}"]
        return ["backend=kuberay", *where, *sizes, "gpu=1", "resources.device=cpu", "resources.threads=1"]

    def __enter__(self) -> KubeRay:
        if self.namespace:
            self.kubectl("create", "namespace", self.namespace)
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self.secret}, "stringData": self.store}
            self.apply("secret.json", secret)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(CommandFailed):  # the cluster went away
            self.clear()
        self.kubectl("delete", "configmap", "peer", "--ignore-not-found", check=False)
        if self.namespace:
            self.kubectl("delete", "namespace", self.namespace, "--wait=false", check=False)
        with suppress(LauncherError):
            store = self.open("")
            store.delete([found.key for found in store.list("")])

    def open(self, prefix: str) -> ObjectStore:
        return open_store(f"{self.runs}/{prefix}".rstrip("/"))

    def kubectl(self, *words: str, check: bool = True) -> Done:
        where = [f"--namespace={self.namespace}"] if self.namespace else []
        return self.sandbox.run(["kubectl", f"--kubeconfig={self.kubeconfig}", *where, *words], timeout_s=KUBECTL_S, check=check)

    def apply(self, name: str, document: dict[str, Any]) -> Done:
        path = self.sandbox.folder / name
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return self.kubectl("apply", "-f", str(path))

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "-o", "json").output)

    def pods(self, job: str, kind: str | None = None) -> list[Any]:
        """Of a RayJob, in order of their making; `kind` is head or worker."""
        found = [
            pod for pod in self.get("pods")["items"] if pod["metadata"].get("labels", {}).get("ray.io/cluster", "").startswith(f"{job}-")
        ]
        of_kind = [pod for pod in found if kind in (None, pod["metadata"]["labels"].get("ray.io/node-type"))]
        return sorted(of_kind, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def steps(self, pod: str) -> dict[int, list[float]]:
        """When each process of a worker pod began its steps, by pid, in seconds since 1970."""
        output = self.kubectl("exec", pod, "-c", WORKER, "--", "python", "-c", READ_STEPS).output
        return {int(pid): moments for pid, moments in json.loads(output).items()}

    def stages(self, job: str) -> dict[str, str]:
        """When a RayJob's parts were ready, as Kubernetes says it: to the second."""
        document = self.get("rayjob", job)
        status = document.get("status", {})
        found = {"created": document["metadata"]["creationTimestamp"], "job_started": status.get("rayJobInfo", {}).get("startTime", "")}
        found["cluster_ready"] = status.get("rayClusterStatus", {}).get("stateTransitionTimes", {}).get("ready", "")
        for pod in self.pods(job):
            kind = pod["metadata"]["labels"]["ray.io/node-type"]
            for container in pod.get("status", {}).get("containerStatuses", []):
                found[f"{kind} {container['name']} runs"] = container["state"].get("running", {}).get("startedAt", "")
            for condition in pod.get("status", {}).get("conditions", []):
                found[f"{kind} {condition['type']}"] = condition["lastTransitionTime"]
        return {name: moment for name, moment in found.items() if moment}

    def clear(self) -> None:
        for job in self._jobs():
            self.remove(job)

    def remove(self, job: str) -> None:
        """Delete a RayJob, and wait until its pods are gone: the next measurement has the machine for itself."""
        self.kubectl("delete", "rayjob", job, "--ignore-not-found", "--wait=false", check=False)
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline:
            with suppress(CommandFailed):
                clusters = [each["metadata"]["name"] for each in self.get("rayclusters")["items"] if _is_of(job, each["metadata"]["name"])]
                if clusters:
                    self.kubectl("delete", "raycluster", *clusters, "--ignore-not-found", "--wait=false")
                pods = [pod["metadata"]["name"] for pod in self.pods(job)]
                if pods:
                    self.kubectl("delete", "pod", *pods, "--ignore-not-found", "--grace-period=1", "--wait=false")
                elif not clusters:
                    return
            time.sleep(1.0)

    def _jobs(self) -> list[str]:
        """All RayJobs of this benchmark: what carries its place for records."""
        return [job["metadata"]["name"] for job in self.get("rayjobs")["items"] if self.runs in json.dumps(job)]

    # the peer

    def give_peer(self, config: dict[str, Any]) -> None:
        """The ConfigMap that the peer's pods mount: its script and what that imports, the models among it."""
        self.kubectl("delete", "configmap", "peer", "--ignore-not-found")
        files = {path.name: path.read_text() for path in (PEERS / "job.py", PEERS / "ray_train_rayjob.py", PEERS / "timed.py")}
        files |= {f"models.{path.name}": path.read_text() for path in (ROOT / "models").glob("*.py")}
        files["config.json"] = json.dumps(config)
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "peer"}, "data": files}
        path = self.sandbox.folder / "peer-files.json"
        path.write_text(json.dumps(document))
        self.kubectl("create", "-f", str(path))
        self._files = list(files)

    def peer(self, name: str, *, most: int, checkpoint_every: int) -> dict[str, Any]:
        """The RayJob as a good user of Ray Train writes it; with `most` above 1 the cluster scales by itself, up to one worker at first."""
        arguments = f"--config {PEER_FOLDER}/config.json --storage {self.runs}/{name} --workers 1 --most {most}"
        cluster: dict[str, Any] = {
            "rayVersion": version("ray"),
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": self._pod("ray-head", HEAD_SIZE)},
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": 1,
                    "minReplicas": 1,
                    "maxReplicas": 1,
                    "rayStartParams": {},
                    "template": self._pod(WORKER, WORKER_SIZE),
                }
            ],
        }
        if most > 1:
            cluster["enableInTreeAutoscaling"] = True
            cluster["autoscalerOptions"] = {"version": "v2", "resources": AUTOSCALER}
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name},
            "spec": {
                "entrypoint": f"python {PEER_FOLDER}/ray_train_rayjob.py {arguments} --checkpoint-every {checkpoint_every}",
                "submissionMode": "HTTPMode",
                "shutdownAfterJobFinishes": True,
                "rayClusterSpec": cluster,
            },
        }

    def let_peer_grow(self, name: str, most: int) -> Done:
        cluster = self.get("rayjob", name)["status"]["rayClusterName"]
        patch = [{"op": "replace", "path": "/spec/workerGroupSpecs/0/maxReplicas", "value": most}]
        return self.kubectl("patch", "raycluster", cluster, "--type=json", "-p", json.dumps(patch))

    def _pod(self, name: str, size: dict[str, str]) -> dict[str, Any]:
        container = {
            "name": name,
            "image": self.image,
            "resources": {"requests": size, "limits": size},
            "env": [
                {"name": "PYTHONPATH", "value": PEER_FOLDER},
                {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
                {"name": "RAY_TRAIN_V2_ENABLED", "value": "1"},
            ],
            "envFrom": [{"secretRef": {"name": self.secret}}],
            "volumeMounts": [{"name": "peer", "mountPath": PEER_FOLDER}],
        }
        items = [{"key": key, "path": _place(key)} for key in self._files]
        volume = {"name": "peer", "configMap": {"name": "peer", "items": items}}
        return {"spec": {"terminationGracePeriodSeconds": 5, "containers": [container], "volumes": [volume]}}


def _is_of(job: str, cluster: str) -> bool:
    return cluster.startswith(f"{job}-")


def _place(key: str) -> str:
    if key.startswith("models."):
        return f"models/{key.removeprefix('models.')}"
    return f"benchmarks/peers/{key}" if key == "job.py" else key


def moments(stages: dict[str, str], since: float) -> dict[str, float]:
    """The same in seconds after the command."""
    return {name: round(datetime.fromisoformat(moment).timestamp() - since, 3) for name, moment in stages.items()}


def newest(records: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((record for record in reversed(records) if record["kind"] == kind), None)
