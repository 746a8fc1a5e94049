"""Jobs on a Ray cluster that somebody else started, with a token: the same commands, and what they say when it cannot be used."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import launcher
from launcher.backends.ray_cluster.jobs_api import RayApi
from launcher.config.schema import RayConfig
from launcher.core.errors import BackendUnavailable
from launcher.core.process import ProcessRef
from tests.ray.test_main_job import assert_ledger_is_exact
from tests.support.clusters import wait_until
from tests.support.jobs import HANG_S, UNNAMED, Project, tell_variables, told_variables

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--ray-client-server-port",
    "--metrics-export-port",
)
GPUS = 3


@dataclass(frozen=True)
class Cluster:
    address: str
    token_file: Path

    @property
    def choice(self) -> tuple[str, ...]:
        return ("backend=ray", f"backend.address={self.address}", f"backend.token_file={self.token_file}")

    def ask(self, path: str, method: str = "GET") -> Any:
        headers = {"Authorization": f"Bearer {self.token_file.read_text()}"}
        with urlopen(Request(self.address + path, method=method, headers=headers), timeout=60) as answer:
            return json.load(answer)

    def jobs(self) -> dict[str, str]:
        """The status of each Ray job, by its submission id."""
        return {job["submission_id"]: job["status"] for job in self.ask("/api/jobs/") if job["submission_id"]}


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def existing() -> Iterator[Cluster]:
    """A Ray of its own session of processes, of which the launcher is told nothing but its address and where its token lies."""
    folder = Path(tempfile.mkdtemp(prefix="x", dir="/tmp"))  # short: Ray's sockets lie in it
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(secrets.token_hex(32))
    numbers = free_ports(len(PORTS))
    options = [word for name, number in zip(PORTS, numbers, strict=True) for word in (name, str(number))]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_", "LAUNCHER_"))}
    environment = {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TEAM_TOKEN": "of the head",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(launcher.__file__).resolve().parents[1]),
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", f"--num-gpus={GPUS}", *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--temp-dir={folder}", "--object-store-memory=80000000"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    cluster = Cluster(f"http://127.0.0.1:{numbers[1]}", token_file)
    try:
        wait_until_up(cluster, process, folder / "log")
        yield cluster
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group, which started with it
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_up(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    api = RayApi(RayConfig(address=cluster.address, token_file=str(cluster.token_file)))

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(BackendUnavailable):
            return api.gpus() == [GPUS]
        return False

    wait_until(up, "the dashboard knows of its node", within_s=HANG_S)


def begin(project: Project, cluster: Cluster, *overrides: str) -> tuple[Any, Any]:
    """A job that trains until it is stopped."""
    run = project.submit(*cluster.choice, "gpu=0", "workers=1..2", "trainer.steps=100000", "elastic.cooldown_s=0", *overrides)
    return run, project.wait_for(run["run_id"], lambda status: status["world_size"] == 2 and status["step"] >= 10)


def test_a_job_is_resized_stopped_and_resumed_on_it(project: Project, existing: Cluster) -> None:
    tell_variables(project, "DATA_ROOT", "HF_TOKEN", UNNAMED)
    run, before = begin(project, existing, "name=guest", "environment.DATA_ROOT=/b", "environment.HF_TOKEN.secret=TEAM_TOKEN")
    run_id, place = run["run_id"], ("--runs", project.runs)
    assert existing.jobs()[run_id] == "RUNNING"
    assert project.json("dashboard", "guest", *place) == {"url": existing.address, "token_file": str(existing.token_file)}
    assert [each["name"] for each in project.json("ls", *place)] == ["guest"]

    project.launch("resize", "guest", "1", *place)
    small = project.wait_for("guest", lambda status: status["world_size"] == 1 and status["step"] > before["step"])
    assert small["term"] == before["term"], "the controller stays"
    workers = [ProcessRef.of(member["pid"]) for member in before["members"]]

    stopped = project.json("stop", "guest", *place)
    assert stopped["state"] == "STOPPED", stopped["reason"]
    assert (stopped["steps_lost"], stopped["samples_repeated"]) == (0, 0)
    assert not [worker for worker in workers if worker.alive()]

    project.launch("resume", "guest", f"trainer.steps={stopped['step'] + 20}", "-d", *place)
    ended = project.wait_for_end("guest")
    assert (ended["state"], ended["step"]) == ("SUCCEEDED", stopped["step"] + 20), ended["reason"]
    assert_ledger_is_exact(project.events("guest"), ended["step"])
    assert len([name for name in existing.jobs() if name.startswith(run_id)]) == 2, "one job for each time that it was started"
    told = told_variables(project, "guest")
    assert len(told) >= 3
    assert all(each == {"DATA_ROOT": "/b", "HF_TOKEN": "of the head", UNNAMED: None} for each in told)
    token = existing.token_file.read_text()
    assert not [path for path in Path(project.runs).rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_a_job_that_is_ended_behind_launchers_back_is_closed_and_can_go_on(project: Project, existing: Cluster) -> None:
    run, _ = begin(project, existing, "name=ended")
    existing.ask(f"/api/jobs/{run['run_id']}/stop", "POST")
    wait_until(lambda: project.status("ended")["state"] == "FAILED", "the run is closed", within_s=HANG_S)
    status = project.status("ended")
    assert "launch resume ended" in status["reason"]
    project.launch("resume", "ended", f"trainer.steps={status['step'] + 5}", "-d", "--runs", project.runs)
    ended = project.wait_for_end("ended")
    assert ended["state"] == "SUCCEEDED", ended["reason"]


def test_what_keeps_a_job_from_it_is_said_before_anything_is_written(project: Project, existing: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    (nowhere,) = free_ports(1)
    at = f"backend.address={existing.address}"
    project.environment["HOME"] = str(tmp_path)  # where Ray's own token file would be
    for words, code, said in (
        ((f"backend.address=http://127.0.0.1:{nowhere}",), 4, "Connection refused"),
        ((at,), 4, "asks for a token"),
        ((at, f"backend.token_file={wrong}"), 4, "refuses the token"),
        ((at, f"backend.token_file={tmp_path / 'absent'}"), 2, "backend.token_file"),
        ((at, f"backend.token_file={existing.token_file}", f"gpu={GPUS + 1}"), 4, f"{GPUS} GPUs"),
        (("backend.address=head:6379",), 2, "backend.address"),
    ):
        refused = project.launch("train", *project.job("backend=ray", *words), check=code)
        assert said in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr, refused.stderr
        assert "0" * 64 not in refused.stderr
    assert not Path(project.runs).exists()
    plan = project.json("plan", *project.job(*existing.choice, "workers=1..4", "gpu=1"))
    assert (plan["fits"], plan["workers"]["now"]) == (True, GPUS)
    assert existing.address in plan["where"]


def test_an_examination_looks_from_the_cluster_and_leaves_nothing_there(project: Project, existing: Cluster) -> None:
    findings = project.json("doctor", *project.job(*existing.choice))
    assert {finding["result"] for finding in findings} == {"ok"}, findings
    assert {"Ray there", "room", "versions there"} <= {finding["name"] for finding in findings}
    assert not [name for name in existing.jobs() if "doctor" in name]
