"""Settings that a cluster would refuse are refused by their key, before anything is written; what it takes is let through."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from launcher.backends.kuberay import backend as kuberay
from launcher.backends.kuberay.settings import check_secrets, check_settings, quantity
from launcher.config.schema import KubeRayConfig
from launcher.core.errors import ConfigError
from launcher.record.variables import SecretReference
from tests.unit.backends import golden

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("key", "given"),
    [
        *((key, given) for key in ("cpu", "head_cpu") for given in ("", "two", "0", "-1", "0.5m", "1,5", "4Gi", "1 ", "500M m")),
        *(
            (key, given)
            for key in ("memory", "head_memory")
            for given in ("", "4GB", "4gi", "4 Gi", "4", "512", "400m", "0Gi", "-4Gi", "1e99")[:-1]
        ),
        *(("namespace", given) for given in ("", "Team", "team.a", "team_a", "-team", "a" * 64)),
        *((key, given) for key in ("secret", "priority_class") for given in ("", "Keys", "keys/wandb", "keys..a", "a_b", "a" * 254)),
        *(
            ("gpu_resource", given)
            for given in ("", "gpu", "nvidia.com/", "nvidia.com/mig 1g", "nvidia.com/mig-1g.10gb+me", "kubernetes.io/gpu", "/gpu", "a/b/c")
        ),
        *(
            ("image", given)
            for given in ("", " ", "launcher:1 ", "Launcher", "ghcr.io/Team/launcher", "launcher:", "launcher:a b", "https://a/b", "a//b")
        ),
    ],
)
def test_a_value_that_a_cluster_cannot_take_is_refused(key: str, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(KubeRayConfig(**{"image": "launcher", key: given}))
    assert caught.value.where == f"backend.{key}"
    assert given in caught.value.given
    assert caught.value.expected


@pytest.mark.parametrize(
    ("key", "given"),
    [
        *(("cpu", given) for given in ("1", "500m", "1.5", ".5", "2.", "1e1", "96", "1k")),
        *(("memory", given) for given in ("4Gi", "512Mi", "64G", "4294967296", "1e9", "1.5Gi", "2Ti")),
        *(("namespace", given) for given in ("default", "a", "7", "team-a")),
        *(("secret", given) for given in ("launcher-store", "a.b.c", "7")),
        *(("gpu_resource", given) for given in ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb.me", "nvidia.com/gpu.shared", "amd.com/gpu")),
        *(
            ("image", given)
            for given in (
                "launcher",
                "launcher:1",
                "ghcr.io/team/launcher:v1.2_x",
                "localhost:5000/launcher",
                "a.b/c/d__e@sha256:" + "0" * 64,
            )
        ),
    ],
)
def test_what_a_cluster_takes_is_let_through(key: str, given: str) -> None:
    check_settings(KubeRayConfig(**{"image": "launcher", key: given}))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4Gi", 4 * 2**30),
        ("1.5Ki", 1536),
        ("500m", Decimal("0.5")),
        ("2k", 2000),
        ("1e3", 1000),
        ("12E", 12 * 10**18),
        ("1Ki2", None),
        ("K", None),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, number: Any) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("labels", "where"),
    [
        ({"a b": "c"}, "a b"),
        ({"Ex.io/a": "c"}, "Ex.io/a"),
        ({"a/": "c"}, "a/"),
        ({"a": "b c"}, "a"),
        ({"a": "-"}, "a"),
        ({"a": "b" * 64}, "a"),
    ],
)
def test_a_label_that_no_node_has_is_refused(labels: dict[str, str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(KubeRayConfig(image="launcher", node_selector=labels))
    assert caught.value.where == f"backend.node_selector.{where}"


@pytest.mark.parametrize(
    ("toleration", "where"),
    [
        ({"key": "a", "efect": "NoSchedule"}, "efect"),
        ({"key": "a", "effect": "NoSchedul"}, "effect"),
        ({"key": "a", "operator": "In"}, "operator"),
        ({"key": "a", "operator": "Exists", "value": "b"}, "value"),
        ({"key": "a", "value": True}, "value"),
        ({"key": "a", "value": "b c"}, "value"),
        ({"key": "a b"}, "key"),
        ({}, "key"),
        ({"value": "b"}, "key"),
        ({"key": "a", "tolerationSeconds": 60}, "tolerationSeconds"),
        ({"key": "a", "effect": "NoExecute", "tolerationSeconds": "60"}, "tolerationSeconds"),
    ],
)
def test_a_toleration_that_tolerates_nothing_is_refused(toleration: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(KubeRayConfig(image="launcher", tolerations=({"operator": "Exists"}, toleration)))
    assert caught.value.where == f"backend.tolerations.1.{where}"


def test_a_near_word_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean NoSchedule"):
        check_settings(KubeRayConfig(image="launcher", tolerations=({"key": "a", "effect": "noschedule"},)))
    with pytest.raises(ConfigError, match="4, which is 4 bytes"):
        check_settings(KubeRayConfig(image="launcher", memory="4"))


def test_the_settings_are_looked_at_before_the_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("nobody asks the cluster")

    monkeypatch.setattr(kuberay, "JobApi", never)
    with pytest.raises(ConfigError) as caught:
        kuberay.KubeRayBackend().place(golden.spec(KubeRayConfig(image="launcher", cpu="many")))
    assert caught.value.where == "backend.cpu"


@pytest.mark.parametrize("reference", ["Team/token", "team/", "/token", "team/to ken", "team/a/b", "team_a/token"])
def test_a_secret_that_no_pod_could_have_is_refused(reference: str) -> None:
    made = golden.config(KubeRayConfig(image="launcher"), environment={"HF_TOKEN": SecretReference(secret=reference)})
    with pytest.raises(ConfigError) as caught:
        check_secrets(made, None)
    assert caught.value.where == "environment.HF_TOKEN.secret"
    assert caught.value.given == repr(reference)


def test_a_key_alone_is_one_of_the_backends_secret() -> None:
    made = golden.config(KubeRayConfig(image="launcher"), environment={"HF_TOKEN": SecretReference(secret="TEAM_TOKEN")})
    check_secrets(made, "launcher-store")
    with pytest.raises(ConfigError, match="which Secret has this key"):
        check_secrets(made, None)
    check_secrets(golden.config(KubeRayConfig(image="launcher"), environment={"HF_TOKEN": SecretReference(secret="team.a/to.ken")}), None)
