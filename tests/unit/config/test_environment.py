"""Which environment variables a job may have, and that a refusal repeats no value."""

from __future__ import annotations

import pytest

from launcher.config.environment import LIMIT_BYTES, RESERVED, check_environment, looks_secret, reserved
from launcher.core.errors import ConfigError
from launcher.record.variables import SecretReference

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "value", ["/b", "", " ", "a=b", "two\nlines", "\u00fcn\u00efc\u00f6de", "$HOME ${X} $(Y)", "https://host/path?token=a:b", "x" * 100_000]
)
def test_a_text_is_a_value_whatever_is_in_it(value: str) -> None:
    check_environment({"DATA_ROOT": value})


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A.B", "\u00c4", "A\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a variable") as caught:
        check_environment({name: "x"})
    assert caught.value.where == f"environment.{name}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RAY_ADDRESS", "Ray's own"),
        ("LAUNCHER_RUNS", "launcher's own"),
        ("CUDA_VISIBLE_DEVICES", "`gpu` says how many"),
        ("MASTER_ADDR", "which workers train together"),
        ("WORLD_SIZE", "which workers train together"),
        ("AWS_SECRET_ACCESS_KEY", "opens the run store"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "opens the run store"),
        ("LD_PRELOAD", "when a process starts"),
        ("PYTHONPATH", "when a process starts"),
        ("WANDB_PROJECT", "tracking.project"),
        ("KUBERNETES_SERVICE_HOST", "Kubernetes"),
    ],
)
@pytest.mark.parametrize("value", ["x", None, SecretReference(secret="X")])
def test_what_others_set_is_refused_with_the_reason(name: str, reason: str, value: str | SecretReference | None) -> None:
    with pytest.raises(ConfigError, match="cannot set this variable") as caught:
        check_environment({name: value})
    assert reason in caught.value.expected


def test_every_reserved_name_has_a_reason_and_others_have_none() -> None:
    assert all(RESERVED.values())
    assert [name for name in ("NCCL_DEBUG", "CUDA_LAUNCH_BLOCKING", "PATH", "OMP_NUM_THREADS", "WANDB_BASE_URL") if reserved(name)] == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "my_secret", "TOKEN", "OPENAI_APIKEY", "SVC_CREDENTIALS"])
@pytest.mark.parametrize("value", ["v3ry-s3cr3t", None])
def test_a_secret_is_given_by_reference_alone_and_not_repeated(name: str, value: str | None) -> None:
    with pytest.raises(ConfigError, match="a secret would be recorded") as caught:
        check_environment({name: value})
    assert "v3ry" not in str(caught.value)
    assert f"environment.{name}.secret={name}" in caught.value.next
    check_environment({name: SecretReference(secret=name)})
    check_environment({name: SecretReference(secret="team/token")})


def test_a_name_that_only_has_to_do_with_a_secret_is_none() -> None:
    assert not any(map(looks_secret, ("TOKENIZERS_PARALLELISM", "KEYBOARD", "MAX_TOKENS", "MONKEY", "SECRETARY", "HF_TOKEN_PATH")))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("postgres://me:pa55@host/db", "a secret would be recorded"),
        ("redis://:pa55@host", "a secret would be recorded"),
        ("a\0pa55", "no variable can hold"),
        ("pa55\udcff", "cannot be recorded"),
    ],
)
def test_a_value_that_cannot_be_recorded_is_refused_and_not_repeated(value: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        check_environment({"PLACE": value})
    assert caught.value.where == "environment.PLACE"
    assert "pa55" not in str(caught.value)


def test_variables_are_no_place_for_files() -> None:
    longest = LIMIT_BYTES - len("A=")
    check_environment({"A": "x" * longest})
    for environment in ({"A": "x" * (longest + 1)}, {"A": "x" * (longest - 2), "B": "\u00fc"}):
        with pytest.raises(ConfigError, match="too long to be recorded"):
            check_environment(environment)


@pytest.mark.parametrize("reference", ["", "a b", "1A", "$X"])
def test_a_reference_names_a_variable_or_a_key_of_a_secret(reference: str) -> None:
    with pytest.raises(ConfigError, match="where the secret is") as caught:
        check_environment({"HF_TOKEN": SecretReference(secret=reference)})
    assert caught.value.where == "environment.HF_TOKEN.secret"
