"""How long a RayJob takes to reach its entrypoint in each of KubeRay's submission modes: `python -m benchmarks.submission_modes --n 3`.

The same cluster of one small head for each, in turn, on the cluster that KUBECONFIG names; the entrypoint says when it runs, on the clock
of its node. Prints one JSON object a mode: seconds from the creation of the RayJob, sorted, and their median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from importlib.metadata import version
from typing import Any

MODES = ("HTTPMode", "K8sJobMode", "SidecarMode")
PATIENCE_S = 180.0
SAY = "python -c 'import time; print(chr(64) + str(time.time()) + chr(64), flush=True); time.sleep(30)'"


def rayjob(name: str, mode: str, image: str) -> dict[str, Any]:
    small = {"cpu": "500m", "memory": "3Gi"}
    head = {"name": "ray-head", "image": image, "resources": {"requests": small, "limits": small}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": SAY,
            "submissionMode": mode,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "headGroupSpec": {"rayStartParams": {"num-cpus": "1"}, "template": {"spec": {"containers": [head]}}},
            },
        },
    }


def measure(name: str, mode: str, image: str) -> float:
    """Seconds from the creation to the entrypoint."""
    began = time.time()
    _kubectl("create", "-f", "-", given=json.dumps(rayjob(name, mode, image)))
    try:
        while time.time() - began < PATIENCE_S:
            pods: Any = json.loads(_kubectl("get", "pods", "-l", "ray.io/node-type=head", "-o", "json"))
            for pod in [pod for pod in pods["items"] if pod["metadata"]["name"].startswith(f"{name}-")]:
                read = [
                    "exec",
                    pod["metadata"]["name"],
                    "-c",
                    "ray-head",
                    "--",
                    "sh",
                    "-c",
                    "cat /tmp/ray/session_latest/logs/job-driver-*.log",
                ]
                said = _kubectl(*read, check=False).split("@")
                if len(said) > 2:
                    return float(said[1]) - began
            time.sleep(0.5)
        raise TimeoutError(f"{mode}: no entrypoint within {PATIENCE_S:g} s")
    finally:
        _kubectl("delete", "rayjob", name, "--wait=true", "--timeout=90s", check=False)


def _kubectl(*words: str, given: str | None = None, check: bool = True) -> str:
    return subprocess.run(["kubectl", *words], input=given, capture_output=True, text=True, check=check).stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--image", default="docker.io/library/launcher:test")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(arguments.n):
        for mode in MODES:
            seconds[mode].append(measure(f"mode-{mode.lower()}-{number}", mode, arguments.image))
    for mode, each in seconds.items():
        print(
            json.dumps({"mode": mode, "seconds": [round(value, 2) for value in sorted(each)], "median": round(statistics.median(each), 2)})
        )


if __name__ == "__main__":
    main()
