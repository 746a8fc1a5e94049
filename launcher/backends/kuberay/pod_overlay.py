"""`backend.overlay`: what a person adds to the pods of the workers. Pure.

It merges as Kubernetes merges what `kubectl patch` is given (strategic merge): mappings key by key, null removes a key, and a list
whose items have an identity, such as containers, volumes or environment variables, item by item; any other list replaces the whole one.
Under a plain merge patch a sidecar would take the place of the worker itself.

References: RFC 7396; the merge keys of PodSpec and Container in the Kubernetes API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.core.errors import ConfigError, nearest

WORKER = "ray-worker"
"""The container of a worker, the first of its pod."""
KEY = "backend.overlay"


@dataclass(frozen=True)
class _Part:
    """A key of a pod template under which there are lists to merge; any other is merged without looking further."""

    identity: str | None = None
    """The key that tells the items of this list apart; None: this is a mapping."""
    parts: Mapping[str, _Part] = field(default_factory=dict)


_NAMED = _Part("name")
_CONTAINERS = _Part(
    "name",
    {
        "env": _NAMED,
        "ports": _Part("containerPort"),
        "volumeMounts": _Part("mountPath"),
        "volumeDevices": _Part("devicePath"),
        "resources": _Part(None, {"claims": _NAMED}),
    },
)
_POD = _Part(
    None,
    {
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "volumes": _NAMED,
        "imagePullSecrets": _NAMED,
        "resourceClaims": _NAMED,
        "hostAliases": _Part("ip"),
        "topologySpreadConstraints": _Part("topologyKey"),
    },
)
_TEMPLATE = _Part(None, {"spec": _POD})
_PLAIN = _Part()
_LABELS = ("launcher/", "ray.io/", "app.kubernetes.io/managed-by")
"""By these launcher and KubeRay find their pods."""
_DRAIN = "how long a worker has to leave is elastic.drain_s"
_SETTINGS = {
    "restartPolicy": "the operator replaces a worker's pod, it does not restart it: leave it out",
    "terminationGracePeriodSeconds": _DRAIN,
    "priorityClassName": "this is backend.priority_class",
}
"""Keys of the pod that launcher sets, and who sets them for it."""
_VARIABLES = ("LAUNCHER_", "RAY_GRACEFUL_SHUTDOWN_")


def merge(document: Any, overlay: Any, part: _Part = _TEMPLATE) -> Any:
    """`document` with the overlay in it; `part`: what of a pod template both are."""
    if isinstance(overlay, (list, tuple)) and part.identity is not None:
        return _merge_items(document or (), overlay, part)
    if not isinstance(overlay, Mapping):
        return overlay
    merged = dict(document) if isinstance(document, Mapping) else {}
    for key, value in overlay.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value, part.parts.get(key, _PLAIN))
    return merged


def _merge_items(items: Iterable[Any], overlay: Iterable[Any], part: _Part) -> list[Any]:
    """What is there already stays where it is: KubeRay takes a pod's first container for Ray's."""
    item_part = _Part(None, part.parts)
    merged = {item[part.identity]: item for item in items}
    for item in overlay:
        merged[item[part.identity]] = merge(merged.get(item[part.identity]), item, item_part)
    return list(merged.values())


def check_overlay(overlay: Mapping[str, Any], gpu_resource: str) -> None:
    """Refuse, by ConfigError, what is no part of a pod template and what launcher cannot do without."""
    _known(overlay, ("metadata", "spec"), KEY, "a part of a pod template")
    metadata, spec = _mapping(overlay, "metadata", KEY), _mapping(overlay, "spec", KEY)
    _known(metadata, ("labels", "annotations"), f"{KEY}.metadata", "what pods are given here")
    for kind in ("labels", "annotations"):
        for name, value in _mapping(metadata, kind, f"{KEY}.metadata").items():
            where = f"{KEY}.metadata.{kind}.{name}"
            if value is not None and not isinstance(value, str):
                raise ConfigError("the value does not fit", where=where, given=repr(value), expected=f'text, in quotes: "{value}"')
            if kind == "labels" and str(name).startswith(_LABELS):
                raise ConfigError("this label is not free", where=where, given=repr(value), expected="a label of your own")
    for name, reason in _SETTINGS.items():
        if name in spec:
            raise ConfigError(f"launcher sets {name} itself", where=f"{KEY}.spec.{name}", given=repr(spec[name]), expected=reason)
    if "containers" in spec and spec["containers"] is None:
        raise ConfigError("the worker's container cannot be removed", where=f"{KEY}.spec.containers", given="null", expected="a list")
    _check_lists(spec, _POD, f"{KEY}.spec")
    for index, container in enumerate(spec.get("containers", ())):
        where = f"{KEY}.spec.containers.{index}"
        if container["name"] == WORKER:
            _check_worker(container, where, gpu_resource)
        elif not container.get("image"):
            raise ConfigError(
                "a further container needs an image",
                where=f"{where}.image",
                given=f"none, for the container {container['name']}",
                expected=f"an image; or, to change the worker's own container, name: {WORKER}",
            )


def _check_worker(container: Mapping[str, Any], where: str, gpu_resource: str) -> None:
    if "lifecycle" in container:
        raise ConfigError(
            "launcher sets lifecycle itself", where=f"{where}.lifecycle", given=repr(container["lifecycle"]), expected=f"none: {_DRAIN}"
        )
    for key in ("image", "env"):
        if container.get(key, "") is None:
            raise ConfigError(
                f"the worker's {key} cannot be removed", where=f"{where}.{key}", given="null", expected="what to change of it"
            )
    settings = {"cpu": "backend.cpu", "memory": "backend.memory", gpu_resource: "gpu, counted in backend.gpu_resource"}
    resources = _mapping(container, "resources", where)
    for kind in ("requests", "limits"):
        for resource, amount in _mapping(resources, kind, f"{where}.resources").items():
            if resource in settings:
                raise ConfigError(
                    f"launcher sets {resource} itself",
                    where=f"{where}.resources.{kind}.{resource}",
                    given=repr(amount),
                    expected=f"this is {settings[resource]}; here belongs what else nodes have, such as rdma/hca",
                )
    for index, variable in enumerate(container.get("env") or ()):
        if variable["name"].startswith(_VARIABLES):
            raise ConfigError("launcher sets this variable itself", where=f"{where}.env.{index}", given=variable["name"])


def _check_lists(value: Mapping[str, Any], part: _Part, where: str) -> None:
    """Every list that is merged item by item is one, and each of its items says which it is, once."""
    for key, inner in part.parts.items():
        found = value.get(key)
        if found is None:
            continue
        if inner.identity is None:
            _check_lists(_mapping(value, key, where), inner, f"{where}.{key}")
            continue
        if not isinstance(found, (list, tuple)):
            raise ConfigError("the value does not fit", where=f"{where}.{key}", given=repr(found), expected="a list")
        seen = set()
        for index, item in enumerate(found):
            identity = item.get(inner.identity) if isinstance(item, Mapping) else None
            if not isinstance(identity, int if inner.identity == "containerPort" else str):
                raise ConfigError(
                    f"{key} are told apart by their {inner.identity}",
                    where=f"{where}.{key}.{index}",
                    given=repr(item),
                    expected=f"a mapping with {inner.identity}",
                )
            if identity in seen:
                raise ConfigError(f"this {inner.identity} is there twice", where=f"{where}.{key}.{index}", given=repr(identity))
            seen.add(identity)
            _check_lists(item, inner, f"{where}.{key}.{index}")


def _mapping(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """What stands under this key; {} where nothing does. Null would remove it whole, with all that launcher has there."""
    value = parent.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError("the value does not fit", where=f"{where}.{key}", given=repr(value), expected="a mapping")
    return value


def _known(given: Mapping[str, Any], known: tuple[str, ...], where: str, what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"this is not {what}", where=f"{where}.{key}", given=repr(given[key]), expected=nearest(key, known))
