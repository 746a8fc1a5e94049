"""Versions that must fit together: those of the machine that submits, and those of the image that runs the job.

What an image has is known from the controllers that ran in it: each leaves a record beside the runs, under the digest of
the image's reference. A tag can be moved to another image, so a record says when it was made, and every controller
compares again for itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from launcher.core.clock import Clock, timestamp
from launcher.core.errors import ConfigError, StoreDamaged
from launcher.core.store import KeyMissing, ObjectStore
from launcher.record.encoding import encode
from launcher.record.parsing import parsed

IMAGES = "images"
"""The folder of the records, beside the runs."""
EQUAL_PARTS = {"python": 2, "launcher": None, "ray": 3, "torch": 2}
"""How many leading numbers must be equal; None: the whole version. The parts of a Ray cluster refuse each other from the third number on."""


@dataclass(frozen=True)
class ImageRecord:
    image: str
    """Its reference, as `backend.image` names it."""
    versions: dict[str, str]
    seen_at: str


def installed_versions() -> dict[str, str]:
    """Of python, launcher, ray and torch, as far as they are installed here; nothing of them is imported."""
    found = {"python": python_version()}
    for package in ("launcher", "ray", "torch"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def compare(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """How `theirs` differ from `ours` where they must not, in words; [] when they can work together.

    What we do not have ourselves is not compared: a machine may submit without torch.
    """
    found = []
    for name in EQUAL_PARTS:
        if name in ours and name not in theirs:
            found.append(f"no {name} instead of {ours[name]}")
        elif name in ours and _decisive(name, theirs[name]) != _decisive(name, ours[name]):
            found.append(f"{name} {theirs[name]} instead of {ours[name]}")
    return found


def disagreement(image: str, ours: Mapping[str, str], theirs: Mapping[str, str], *, seen_at: str | None = None) -> ConfigError | None:
    """The refusal of a job submitted with the versions `ours` on an image with the versions `theirs`; None when they can work together.

    `seen_at`: when the image was seen to have them; None: this is written in the image itself.
    """
    differences = compare(ours, theirs)
    if not differences:
        return None
    python_differs = any(word.startswith("python ") for word in differences)
    packages = " ".join(f"{name}=={theirs[name]}" for name in EQUAL_PARTS if name != "python" and name in theirs)
    install = f"install here what the image has ({'Python ' + theirs['python'] + ', ' if python_differs else ''}pip install {packages})"
    ways = ["set backend.image to an image with the expected versions", install]
    if seen_at is not None:
        ways.append("if the image was changed since, `launch doctor` with the same words looks anew")
    return ConfigError(
        f"the image and the machine that submitted do not fit together: {', '.join(differences)}",
        where="backend.image",
        given=f"{image} with {_listed(theirs)}" + (f", as seen at {seen_at}" if seen_at is not None else ""),
        expected=_listed({name: number if name in ("launcher", "ray") else _leading(number, 2) for name, number in ours.items()}),
        next="; or ".join(ways),
    )


def record_image(store: ObjectStore, image: str, versions: Mapping[str, str], clock: Clock) -> None:
    """Record what an image has; an older record of it is replaced."""
    store.put(image_key(image), encode({"image": image, "versions": dict(versions), "seen_at": timestamp(clock.now())}))


def read_image(store: ObjectStore, image: str) -> ImageRecord | None:
    """What is known of an image; None for one that nobody has run yet, and where the record cannot be read."""
    key = image_key(image)
    try:
        return parsed(json.loads(store.get(key)), ImageRecord, where=key)
    except (KeyMissing, ValueError, StoreDamaged):
        return None  # the record only lets a job be refused early: the controller compares in any case


def refuse_image(store: ObjectStore, image: str, ours: Mapping[str, str]) -> None:
    """Raises ConfigError for an image that is known to have versions with which a job submitted with `ours` cannot run."""
    record = read_image(store, image)
    refusal = disagreement(image, ours, record.versions, seen_at=record.seen_at) if record is not None else None
    if refusal is not None:
        raise refusal


def image_key(image: str) -> str:
    """The key of an image's record, relative to the runs."""
    return f"{IMAGES}/{hashlib.sha256(image.encode()).hexdigest()}.json"


def _decisive(name: str, number: str) -> str:
    parts = EQUAL_PARTS[name]
    return number if parts is None else _leading(number, parts)


def _leading(number: str, parts: int) -> str:
    """The first `parts` numbers of a version: 2.15 of 2.15.0+cu130; a version that is not numbered like that as it is."""
    match = re.match(r"\d+" + r"\.\d+" * (parts - 1), number)
    return match[0] if match is not None else number


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in EQUAL_PARTS if name in versions)
