"""The store's promises, on a local folder and on S3."""

from __future__ import annotations

import os
import threading

import pytest

from launcher.core.errors import StoreUnavailable
from launcher.core.store import KeyMissing, ObjectStore, open_store
from tests.support.s3 import S3Server

pytestmark = pytest.mark.storage


def test_the_verbs(store: ObjectStore, uri: str) -> None:
    assert store.list("") == []
    assert store.create("a/1", b"first")
    assert not store.create("a/1", b"second")
    store.put("a/10", b"")
    store.put("ab", b"x")
    store.put("a/10", b"replaced")
    assert store.get("a/1") == b"first"
    assert [(item.key, item.size_bytes) for item in store.list("a")] == [("a/1", 5), ("a/10", 8)]
    assert [item.key for item in store.list("")] == ["a/1", "a/10", "ab"]
    store.delete(["a/1", "never/was"])
    with pytest.raises(KeyMissing):
        store.get("a/1")
    assert store.create("a/1", b"again")
    assert open_store(uri).get("a/1") == b"again"
    assert store.uri == uri


def test_large_objects_and_long_lists(store: ObjectStore) -> None:
    large = os.urandom(12 * 1024 * 1024)
    store.put("large", large)
    assert store.get("large") == large
    for number in range(1100):  # more than one page of S3
        store.put(f"many/{number:04d}", b"")
    assert [item.key for item in store.list("many")] == [f"many/{number:04d}" for number in range(1100)]


def test_one_of_many_creates_wins(uri: str, store: ObjectStore) -> None:
    ready = threading.Barrier(8)
    won: list[tuple[int, int]] = []

    def attempt(number: int) -> None:
        mine = open_store(uri)
        for turn in range(20):
            ready.wait()
            if mine.create(f"turn/{turn}", b"%d" % number):
                won.append((turn, number))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, _ in won) == list(range(20))
    for turn, number in won:
        assert store.get(f"turn/{turn}") == b"%d" % number


def test_wrong_keys_and_a_missing_bucket_are_told_without_secrets(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    denied = open_store(s3_environment.uri("runs"))
    for attempt in (lambda: denied.get("a"), lambda: denied.put("a", b""), lambda: denied.create("a", b""), lambda: denied.list("")):
        with pytest.raises(StoreUnavailable, match="access keys") as caught:
            attempt()
        for secret in ("not-the-secret", *(s3_environment.environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))):
            assert secret not in str(caught.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_environment.environment["AWS_SECRET_ACCESS_KEY"])
    nowhere = open_store("s3://no-such-bucket/runs")
    for attempt in (lambda: nowhere.get("a"), lambda: nowhere.put("a", b""), lambda: nowhere.list("")):
        with pytest.raises(StoreUnavailable, match="create the bucket"):
            attempt()


def test_a_server_that_is_not_there_is_told(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="can be reached"):
        open_store(s3_environment.uri("runs")).list("")
