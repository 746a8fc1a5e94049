"""The settings of `backend=kuberay` that every cluster would refuse: refused before anything is written, with their key. Pure.

References: names, labels and quantities of the Kubernetes API; image references of the OCI distribution specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from launcher.backends.kuberay.pod_overlay import check_overlay
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.errors import ConfigError, nearest
from launcher.jobspec.environment import references

LEAST_MEMORY = 256 * 2**20
"""Bytes; Ray does not start in less. Whoever gives less has usually forgotten the unit."""
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_HOST = r"[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = rf"(?:(?:{_HOST}(?:\.{_HOST})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?{_PATH}(?:/{_PATH})*(?::[A-Za-z0-9_][-\w.]{{0,127}})?(?:@[a-z0-9+._-]+:[0-9a-fA-F]{{32,}})?"
_DIGITS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_QUANTITY = re.compile(rf"([+-]?{_DIGITS})(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?[0-9]{{1,2}}))?", re.ASCII)
_SCALE = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def check_settings(backend: KubeRayConfig) -> None:
    """Raises ConfigError with the key, what was given and what is expected."""
    _check_image(backend.image)
    if backend.namespace is not None:
        _matches(_LABEL, backend.namespace, 63, "backend.namespace", "a namespace: a-z, 0-9 and '-', at most 63, such as team-vision")
    for key, name in (("secret", backend.secret), ("priority_class", backend.priority_class)):
        if name is not None:
            _matches(_SUBDOMAIN, name, 253, f"backend.{key}", "the name of an object: a-z, 0-9, '-' and '.', at most 253")
    for key, amount in (("cpu", backend.cpu), ("head_cpu", backend.head_cpu)):
        _check_cpu(amount, f"backend.{key}")
    for key, amount in (("memory", backend.memory), ("head_memory", backend.head_memory)):
        _check_memory(amount, f"backend.{key}")
    _check_gpu_resource(backend.gpu_resource)
    for name, value in backend.node_selector.items():
        where = f"backend.node_selector.{name}"
        _check_label_key(name, where)
        _matches(rf"(?:{_NAME})?", value, 63, where, "the value of a label: letters, digits, '-', '_' and '.', at most 63")
    for index, toleration in enumerate(backend.tolerations):
        _check_toleration(toleration, f"backend.tolerations.{index}")
    check_overlay(backend.overlay, backend.gpu_resource)


def check_secrets(config: JobConfig, secret: str | None) -> None:
    """Raises ConfigError for a variable whose secret no pod could have. `secret`: that of the backend."""
    for name, reference in references(config).items():
        where = f"environment.{name}.secret"
        if "/" not in reference and secret is None:
            raise ConfigError(
                "it does not say which Secret has this key",
                where=where,
                given=reference,
                expected="SECRET/KEY, or a key of the Secret that backend.secret names",
            )
        if "/" in reference:
            expected = "SECRET/KEY: the name of a Secret in the namespace, and one of its keys, such as hugging-face/token"
            _matches(rf"{_SUBDOMAIN}/[-._A-Za-z0-9]+", reference, 507, where, expected)


def quantity(text: str) -> Decimal | None:
    """The number that a Kubernetes quantity such as 500m or 4Gi stands for; None for a text that is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number, binary, decimal, exponent = match.groups()
    if binary:
        return Decimal(number) * Decimal(1024) ** ("KMGTPE".index(binary[0]) + 1)
    return Decimal(number).scaleb(_SCALE[decimal] if decimal else int(exponent or 0))


def _check_cpu(given: str, where: str) -> None:
    amount = quantity(given)
    if amount is None or amount <= 0 or amount * 1000 % 1 or given.endswith("i"):
        raise ConfigError(
            "this is no number of CPUs", where=where, given=repr(given), expected='a Kubernetes quantity: "2", "1.5" or 500m (half a CPU)'
        )


def _check_memory(given: str, where: str) -> None:
    amount = quantity(given)
    if amount is None:
        raise ConfigError("this is no amount of memory", where=where, given=repr(given), expected="a Kubernetes quantity: 4Gi or 512Mi")
    if amount < LEAST_MEMORY or amount % 1:
        raise ConfigError(
            "Ray does not start in so little memory",
            where=where,
            given=f"{given}, which is {amount:f} bytes",
            expected=f"at least {LEAST_MEMORY // 2**20}Mi; a Kubernetes quantity with its unit: 4Gi or 512Mi",
        )


def _check_image(image: str) -> None:
    if not re.fullmatch(_IMAGE, image, re.ASCII):
        raise ConfigError(
            "this is no image",
            where="backend.image",
            given=repr(image),
            expected="[registry/]repository[:tag], such as ghcr.io/team/launcher:1",
        )


def _check_gpu_resource(name: str) -> None:
    where = "backend.gpu_resource"
    prefix, slash, _ = name.partition("/")
    _check_label_key(name, where, "a resource of nodes, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb")
    # Kubernetes reserves these names: no node offers a resource under them.
    if not slash or prefix.startswith("requests.") or prefix == "kubernetes.io" or prefix.endswith(".kubernetes.io"):
        raise ConfigError(
            "nodes have no such resource",
            where=where,
            given=repr(name),
            expected="a resource with the domain of its vendor, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb",
        )


def _check_label_key(key: str, where: str, expected: str = "the key of a label, such as nvidia.com/gpu.product") -> None:
    prefix, slash, name = key.rpartition("/")
    if not re.fullmatch(_NAME, name, re.ASCII) or (slash and (len(prefix) > 253 or not re.fullmatch(_SUBDOMAIN, prefix))):
        raise ConfigError("this is no name of Kubernetes", where=where, given=repr(key), expected=expected)


def _check_toleration(toleration: Mapping[str, object], where: str) -> None:
    _check_toleration_types(toleration, where)
    key, operator, value, effect = (
        str(toleration.get(name, default)) for name, default in (("key", ""), ("operator", "Equal"), ("value", ""), ("effect", ""))
    )
    if key:
        _check_label_key(key, f"{where}.key", "the key of a taint, such as nvidia.com/gpu")
    if operator not in ("Exists", "Equal"):
        raise ConfigError(
            "no such choice", where=f"{where}.operator", given=repr(operator), expected=nearest(operator, ("Exists", "Equal"))
        )
    if effect and effect not in _EFFECTS:
        raise ConfigError("no such choice", where=f"{where}.effect", given=repr(effect), expected=nearest(effect, _EFFECTS))
    if operator == "Equal" and not key:
        raise ConfigError(
            "it tolerates nothing", where=f"{where}.key", given="none", expected="the key of a taint; for all taints operator: Exists"
        )
    if operator == "Exists" and value:
        raise ConfigError("Exists compares no value", where=f"{where}.value", given=repr(value), expected="operator: Equal, or no value")
    _matches(rf"(?:{_NAME})?", value, 63, f"{where}.value", "the value of a taint: letters, digits, '-', '_' and '.', at most 63")
    if "tolerationSeconds" in toleration and effect != "NoExecute":
        raise ConfigError(
            "only the effect NoExecute has a time",
            where=f"{where}.tolerationSeconds",
            given=f"effect {effect or 'any'}",
            expected="NoExecute",
        )


def _check_toleration_types(toleration: Mapping[str, object], where: str) -> None:
    for key, value in toleration.items():
        if key not in _TOLERATION:
            raise ConfigError("a toleration has no such key", where=f"{where}.{key}", given=repr(value), expected=nearest(key, _TOLERATION))
        if key == "tolerationSeconds" and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError("the value does not fit", where=f"{where}.{key}", given=repr(value), expected="a whole number of seconds")
        if key != "tolerationSeconds" and not isinstance(value, str):
            raise ConfigError("the value does not fit", where=f"{where}.{key}", given=repr(value), expected=f'text, in quotes: "{value}"')


def _matches(pattern: str, text: str, longest: int, where: str, expected: str) -> None:
    if len(text) > longest or not re.fullmatch(pattern, text, re.ASCII):
        raise ConfigError("this is no name of Kubernetes", where=where, given=repr(text), expected=expected)
