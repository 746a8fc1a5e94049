"""Which versions can work together, what is remembered of an image, and how a refusal says the way out."""

from __future__ import annotations

import pytest

from launcher.core.clock import ManualClock
from launcher.core.errors import ConfigError
from launcher.jobspec import versions
from tests.support.stores import MemoryStore

pytestmark = pytest.mark.unit
OURS = {"python": "3.11.7", "launcher": "0.1.0", "ray": "2.60.0", "torch": "2.15.0"}
IMAGE = "registry.example/launcher:1"


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({}, []),
        ({"python": "3.11.14", "torch": "2.15.1+cpu"}, []),
        ({"python": "3.12.1"}, ["python 3.12.1 instead of 3.11.7"]),
        ({"torch": "2.16.0"}, ["torch 2.16.0 instead of 2.15.0"]),
        ({"torch": "2.1.50"}, ["torch 2.1.50 instead of 2.15.0"]),
        ({"ray": "2.60.1"}, ["ray 2.60.1 instead of 2.60.0"]),
        ({"ray": "3.0.0.dev0"}, ["ray 3.0.0.dev0 instead of 2.60.0"]),
        ({"launcher": "0.1.0.post1"}, ["launcher 0.1.0.post1 instead of 0.1.0"]),
        ({"launcher": "0.2.0", "ray": "2.61.0"}, ["launcher 0.2.0 instead of 0.1.0", "ray 2.61.0 instead of 2.60.0"]),
    ],
)
def test_what_must_be_equal_is_compared_and_no_more(theirs: dict[str, str], words: list[str]) -> None:
    assert versions.compare(OURS, {**OURS, **theirs}) == words


def test_what_is_missing_there_counts_and_what_is_missing_here_does_not() -> None:
    without = {name: number for name, number in OURS.items() if name != "torch"}
    assert versions.compare(OURS, without) == ["no torch instead of 2.15.0"]
    assert versions.compare(without, OURS) == []


def test_what_is_installed_here_works_together_with_itself() -> None:
    here = versions.installed_versions()
    assert set(here) == set(versions.EQUAL_PARTS)
    assert versions.disagreement(IMAGE, here, here) is None


def test_an_image_is_remembered_by_its_reference_and_the_newest_word_counts() -> None:
    store, clock = MemoryStore(), ManualClock()
    assert versions.read_image(store, IMAGE) is None
    versions.record_image(store, IMAGE, OURS, clock)
    clock.advance(60)
    versions.record_image(store, IMAGE, {**OURS, "ray": "2.61.0"}, clock)
    assert versions.read_image(store, IMAGE) == versions.ImageRecord(IMAGE, {**OURS, "ray": "2.61.0"}, "2026-01-01T00:01:00.000Z")
    assert versions.read_image(store, "registry.example/launcher:2") is None
    assert [item.key for item in store.list(versions.IMAGES)] == [versions.image_key(IMAGE)]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"versions": []}', b'{"versions": {"ray": "1"}}'])
def test_a_record_that_is_none_is_passed_over(data: bytes) -> None:
    store = MemoryStore()
    store.put(versions.image_key(IMAGE), data)
    versions.refuse_image(store, IMAGE, OURS)


def test_a_refusal_by_record_says_when_it_was_seen_and_what_would_do() -> None:
    store = MemoryStore()
    versions.refuse_image(store, IMAGE, OURS)
    versions.record_image(store, IMAGE, OURS, ManualClock())
    versions.refuse_image(store, IMAGE, OURS)
    versions.record_image(store, IMAGE, {**OURS, "python": "3.12.1", "ray": "2.61.0"}, ManualClock())
    with pytest.raises(ConfigError) as caught:
        versions.refuse_image(store, IMAGE, OURS)
    error = caught.value
    assert error.where == "backend.image"
    assert error.what.endswith("do not fit together: python 3.12.1 instead of 3.11.7, ray 2.61.0 instead of 2.60.0")
    assert error.given == f"{IMAGE} with python 3.12.1, launcher 0.1.0, ray 2.61.0, torch 2.15.0, as seen at 2026-01-01T00:00:00.000Z"
    assert error.expected == "python 3.11, launcher 0.1.0, ray 2.60.0, torch 2.15"
    assert "Python 3.12.1, pip install launcher==0.1.0 ray==2.61.0 torch==2.15.0" in error.next
    assert "`launch doctor`" in error.next


def test_a_refusal_in_the_image_itself_speaks_of_no_record() -> None:
    error = versions.disagreement(IMAGE, OURS, {**OURS, "ray": "2.61.0"})
    assert error is not None
    assert "seen at" not in error.given
    assert "doctor" not in error.next
    assert "Python" not in error.next
