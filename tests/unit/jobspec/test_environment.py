"""The environment of the command and the configuration in; what is recorded, what is handed over and what is said out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from launcher.config.schema import JobConfig
from launcher.config.shipped import shipped_folder
from launcher.core.errors import ConfigError
from launcher.jobspec import environment
from launcher.record.variables import SecretReference
from tests.support.fakes import job_config

pytestmark = pytest.mark.unit
BACKENDS: dict[str, dict[str, Any]] = {
    "local": {"name": "local"},
    "ray": {"name": "ray", "address": "http://head:8265"},
    "kuberay": {"name": "kuberay", "image": "launcher:1"},
}
COMMAND = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "DATA_ROOT": "/a",
    "LEFT": "over",
    "NCCL_DEBUG": "INFO",
    "HF_HOME": "/home/me/hf",
    "CUDA_VISIBLE_DEVICES": "1",
    "https_proxy": "http://me:pa55@proxy",
    "AWS_SECRET_ACCESS_KEY": "store",
    "HF_TOKEN": "v3ry-s3cr3t",
    "LD_LIBRARY_PATH": "/lib",
    "RAY_memory_monitor_refresh_ms": "0",
}


def config(backend: str = "local", **variables: Any) -> JobConfig:
    return job_config("s3://bucket/runs", backend=BACKENDS[backend], environment=variables)


def submitted(backend: str = "local", command: dict[str, str] | None = None, **variables: Any) -> JobConfig:
    return environment.with_variables(config(backend, **variables), COMMAND if command is None else command)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_named_variable_has_its_value_or_that_of_the_command(backend: str) -> None:
    made = submitted(backend, DATA_ROOT=None, SIZE="3", EMPTY="", HF_TOKEN={"secret": "HF_TOKEN"})
    assert made.environment.items() >= {"DATA_ROOT": "/a", "SIZE": "3", "EMPTY": "", "HF_TOKEN": SecretReference(secret="HF_TOKEN")}.items()
    assert submitted(backend, DATA_ROOT="/b").environment["DATA_ROOT"] == "/b"


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_the_others_only_those_on_the_list_go_with_the_job(backend: str) -> None:
    here = {"HF_HOME": "/home/me/hf"} if backend == "local" else {}
    assert submitted(backend).environment == {"NCCL_DEBUG": "INFO", **here}
    assert submitted(backend, NCCL_DEBUG="WARN").environment["NCCL_DEBUG"] == "WARN"


def test_a_list_lets_no_reserved_name_and_no_secret_through() -> None:
    command = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_LAUNCH_BLOCKING": "1", "OMP_SECRET": "x", "TZ": "Asia/Tokyo"}
    assert submitted(command=command).environment == {"CUDA_LAUNCH_BLOCKING": "1", "TZ": "Asia/Tokyo"}


def test_a_variable_that_the_command_lacks_is_not_left_out_silently() -> None:
    with pytest.raises(ConfigError, match="has no such variable") as caught:
        submitted(OUTPUT_ROOT=None)
    assert caught.value.where == "environment.OUTPUT_ROOT"
    with pytest.raises(ConfigError, match="cannot be recorded"):
        submitted(command={"DATA_ROOT": "/\udcff"}, DATA_ROOT=None)


def test_the_local_ray_starts_with_nothing_of_its_first_command_but_what_a_process_needs() -> None:
    assert environment.of_local_ray(COMMAND) == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/lib",
        "RAY_memory_monitor_refresh_ms": "0",
    }


def test_what_no_record_may_have_is_handed_over_by_the_controller() -> None:
    secret = {"secret": "HF_TOKEN"}
    here = environment.handed_over(submitted(HF_TOKEN=secret, MY_TOKEN=secret), COMMAND)
    assert here == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "https_proxy": "http://me:pa55@proxy",
        "AWS_SECRET_ACCESS_KEY": "store",
        "HF_TOKEN": "v3ry-s3cr3t",
        "MY_TOKEN": "v3ry-s3cr3t",
    }
    for backend in ("ray", "kuberay"):
        there = environment.handed_over(submitted(backend, HF_TOKEN=secret), COMMAND)
        assert there == {"AWS_SECRET_ACCESS_KEY": "store", "HF_TOKEN": "v3ry-s3cr3t"}


def test_a_variable_of_the_job_is_not_overridden_by_the_login() -> None:
    made = submitted(PATH="/opt/bin:/bin")
    assert environment.recorded(made)["PATH"] == "/opt/bin:/bin"
    assert "PATH" not in environment.handed_over(made, COMMAND)


def test_a_key_of_a_secret_lies_under_the_variables_own_name() -> None:
    made = submitted("kuberay", HF_TOKEN={"secret": "team/token"})
    assert environment.secrets(made, {"HF_TOKEN": "x", "token": "y"}) == {"HF_TOKEN": "x"}


@pytest.mark.parametrize("reference", ["OTHER_TOKEN", "team/token"])
def test_a_secret_that_is_not_there_is_named_with_the_places_to_look(reference: str) -> None:
    made = submitted("kuberay", MY_TOKEN={"secret": reference})
    with pytest.raises(ConfigError, match="not where the controller starts") as caught:
        environment.handed_over(made, COMMAND)
    assert caught.value.where == "environment.MY_TOKEN.secret"
    assert reference in caught.value.given
    assert "v3ry" not in str(caught.value)


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_only_kubernetes_has_secrets_of_kubernetes(backend: str) -> None:
    with pytest.raises(ConfigError, match="Kubernetes") as caught:
        environment.refuse_kubernetes_secrets(config(backend, MY_TOKEN={"secret": "team/token"}))
    assert f"backend={backend}" in caught.value.given
    environment.refuse_kubernetes_secrets(config(backend, MY_TOKEN={"secret": "MY_TOKEN"}))


def test_what_the_code_reads_and_would_not_find_is_said() -> None:
    read = {"DATA_ROOT", "HF_TOKEN", "HOME", "RANK", "NOT_SET", "NCCL_DEBUG", "SIZE", "AWS_SECRET_ACCESS_KEY", "TERM"}
    said = environment.left_behind(read, submitted(SIZE="3"), {**COMMAND, "RANK": "0", "TERM": "xterm"})
    assert [sentence.split(",")[0] for sentence in said] == ["the code reads DATA_ROOT", "the code reads HF_TOKEN"]
    assert "environment.DATA_ROOT=null" in said[0]
    assert "environment.HF_TOKEN.secret=HF_TOKEN" in said[1]
    assert "v3ry" not in said[1]


def test_a_resume_keeps_its_variables_and_says_where_the_command_differs() -> None:
    before = submitted(DATA_ROOT=None, SIZE="3", HF_TOKEN={"secret": "HF_TOKEN"})
    assert list(environment.differences(before, COMMAND)) == []
    assert list(environment.differences(before, {})) == []
    command = {**COMMAND, "DATA_ROOT": "/b", "HF_TOKEN": "another", "TORCH_LOGS": "\udcff"}
    assert list(environment.differences(before, command)) == [
        "the run keeps DATA_ROOT=/a; this command has /b: environment.DATA_ROOT=null takes it over",
        "the run goes on without TORCH_LOGS, which this command has: environment.TORCH_LOGS=null takes it over",
    ]


def test_a_value_is_shown_on_one_line_and_not_at_length() -> None:
    assert environment.shown("/b") == "/b"
    assert environment.shown("") == "''"
    assert environment.shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert environment.shown("postgres://me:pa55@host") == "(an address with a password in it)"
    assert environment.shown("x" * 100) == f"{'x' * 60}... (100 characters)"
    assert environment.shown(SecretReference(secret="team/token")) == "(secret team/token)"


def test_the_page_lists_what_goes_with_a_job_unnamed() -> None:
    page = (shipped_folder() / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| (every backend|local) \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    listed = {where: set(re.findall(r"`([A-Z_*]+)`", names)) for where, names in rows}
    assert listed == {"every backend": set(environment.EVERYWHERE), "local": set(environment.HERE)}
