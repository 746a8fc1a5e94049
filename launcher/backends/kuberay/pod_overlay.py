"""`backend.overlay`: what a person adds to the pods of the workers. Pure.

It is merged as `kubectl patch` merges (strategic merge): mappings key by key; null removes a key; a list whose items have an identity,
such as containers, volumes or environment variables, item by item; any other list replaces the one that was there. Under a plain merge
patch the list with a sidecar would replace the list with the worker's own container.

References: RFC 7396; the merge keys of PodSpec and Container in the Kubernetes API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from launcher.core.errors import ConfigError, nearest
from launcher.core.types import Json

WORKER = "ray-worker"
"""The name of a worker's own container, the first of its pod."""
KEY = "backend.overlay"


@dataclass(frozen=True)
class _Part:
    """A part of a pod template that holds lists to merge item by item; parts that are not listed here hold none."""

    identity: str | None = None
    """The key that tells the items of this list apart; None where the part is a mapping."""
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
"""Beginnings of the labels by which launcher and KubeRay find their pods."""
_DRAIN = "how long a worker has to leave is elastic.drain_s"
_SETTINGS = {
    "restartPolicy": "the operator replaces a worker's pod, it does not restart it: leave it out",
    "terminationGracePeriodSeconds": _DRAIN,
    "priorityClassName": "this is backend.priority_class",
}
"""Keys of the pod that launcher sets -> what to set instead."""
_VARIABLES = ("LAUNCHER_", "RAY_GRACEFUL_SHUTDOWN_")
"""Beginnings of the environment variables that launcher sets."""


def merge(document: Json, overlay: Json, part: _Part = _TEMPLATE) -> Json:
    """`document` with the overlay in it; neither is changed. `part`: which part of a pod template both are."""
    if isinstance(overlay, (list, tuple)) and part.identity is not None:
        return _merge_items(_mappings(document), _mappings(overlay), part.identity, part)
    if not isinstance(overlay, Mapping):
        return overlay
    merged = dict(document) if isinstance(document, Mapping) else {}
    for key, value in overlay.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value, part.parts.get(key, _PLAIN))
    return merged


def _merge_items(items: Iterable[Mapping[str, Json]], overlay: Iterable[Mapping[str, Json]], identity: str, part: _Part) -> Json:
    """Items that were there keep their place: KubeRay takes a pod's first container for Ray's."""
    item_part = _Part(None, part.parts)
    merged: dict[Json, Json] = {item[identity]: dict(item) for item in items}
    for item in overlay:
        merged[item[identity]] = merge(merged.get(item[identity]), dict(item), item_part)
    return list(merged.values())


def _mappings(value: Json) -> list[Mapping[str, Json]]:
    """The items of a list that `check_overlay` has let through, or that launcher made; [] where there is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def as_json(value: object, where: str) -> Json:
    """A value of the configuration as a document can hold it. Raises ConfigError for one that JSON does not have; `where`: its key."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item, f"{where}.{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError("the value does not fit", where=where, given=repr(value), expected="text, a number, true, false, a list or a mapping")


def check_overlay(overlay: Mapping[str, object], gpu_resource: str) -> None:
    """Raises ConfigError, with the key, for what is no part of a pod template and for what launcher needs as it is."""
    given = {key: as_json(value, f"{KEY}.{key}") for key, value in overlay.items()}
    _refuse_unknown(given, ("metadata", "spec"), KEY, "a part of a pod template")
    _check_metadata(_mapping(given, "metadata", KEY))
    spec = _mapping(given, "spec", KEY)
    for name, reason in _SETTINGS.items():
        if name in spec:
            raise ConfigError(f"launcher sets {name} itself", where=f"{KEY}.spec.{name}", given=repr(spec[name]), expected=reason)
    if "containers" in spec and spec["containers"] is None:
        raise ConfigError("the worker's container cannot be removed", where=f"{KEY}.spec.containers", given="null", expected="a list")
    _check_lists(spec, _POD, f"{KEY}.spec")
    for index, container in enumerate(_mappings(spec.get("containers"))):
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


def _check_metadata(metadata: Mapping[str, Json]) -> None:
    _refuse_unknown(metadata, ("labels", "annotations"), f"{KEY}.metadata", "what pods are given here")
    for kind in ("labels", "annotations"):
        for name, value in _mapping(metadata, kind, f"{KEY}.metadata").items():
            where = f"{KEY}.metadata.{kind}.{name}"
            if value is not None and not isinstance(value, str):
                raise ConfigError("the value does not fit", where=where, given=repr(value), expected=f'text, in quotes: "{value}"')
            if kind == "labels" and str(name).startswith(_LABELS):
                raise ConfigError("this label is not free", where=where, given=repr(value), expected="a label of your own")


def _check_worker(container: Mapping[str, Json], where: str, gpu_resource: str) -> None:
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
    for index, variable in enumerate(_mappings(container.get("env"))):
        name = str(variable["name"])
        if name.startswith(_VARIABLES):
            raise ConfigError("launcher sets this variable itself", where=f"{where}.env.{index}", given=name)


def _check_lists(value: Mapping[str, Json], part: _Part, where: str) -> None:
    """Raises ConfigError where a list that is merged item by item is none, or an item has no identity or that of another item."""
    for key, inner in part.parts.items():
        found = value.get(key)
        if found is None:
            continue
        if inner.identity is None:
            _check_lists(_mapping(value, key, where), inner, f"{where}.{key}")
            continue
        if not isinstance(found, (list, tuple)):
            raise ConfigError("the value does not fit", where=f"{where}.{key}", given=repr(found), expected="a list")
        seen: set[Json] = set()
        for index, item in enumerate(found):
            identity = item.get(inner.identity) if isinstance(item, Mapping) else None
            if not isinstance(item, Mapping) or not isinstance(identity, int if inner.identity == "containerPort" else str):
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


def _mapping(parent: Mapping[str, Json], key: str, where: str) -> Mapping[str, Json]:
    """The mapping under this key; {} where there is none. Raises ConfigError for anything else: null would remove what launcher has there."""
    value = parent.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError("the value does not fit", where=f"{where}.{key}", given=repr(value), expected="a mapping")
    return value


def _refuse_unknown(given: Mapping[str, Json], known: tuple[str, ...], where: str, what: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"this is not {what}", where=f"{where}.{key}", given=repr(given[key]), expected=nearest(key, known))
