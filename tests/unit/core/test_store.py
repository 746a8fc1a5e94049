from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError, LauncherError, StoreUnavailable
from launcher.core.store import KeyMissing, _storage_errors, is_local, local_path, open_store

pytestmark = pytest.mark.unit


def test_a_folder_that_is_not_there_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "runs"))
    assert store.list("") == []
    with pytest.raises(KeyMissing):
        store.get("a")
    with pytest.raises(StoreUnavailable, match="does not exist"):
        store.create("a", b"")
    assert not (tmp_path / "runs").exists()


def test_a_folder_is_made_on_demand_and_named_by_uri_as_well(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/deep/runs", create=True).put("a/b", b"1")
    assert (tmp_path / "deep/runs/a/b").read_bytes() == b"1"
    assert open_store(str(tmp_path / "deep/runs")).get("a/b") == b"1"
    assert is_local("./runs")
    assert not is_local("s3://bucket/runs")
    assert local_path("runs").is_absolute()


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreUnavailable) as caught:
        open_store(str(tmp_path / "runs"), create=True)
    assert str(tmp_path / "runs") in str(caught.value)


def test_one_of_many_creates_wins_and_its_bytes_stay_whole(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    ready = threading.Barrier(8)
    won: list[int] = []

    def attempt(number: int) -> None:
        for turn in range(10):
            ready.wait()
            if store.create(f"turn/{turn}", bytes([number]) * 100_000):
                won.append(turn)
            assert len(set(store.get(f"turn/{turn}"))) == 1

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(10))


def test_what_a_killed_writer_left_behind_is_neither_listed_nor_in_the_way(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    store.put("a/one", b"1")
    (tmp_path / "a/two#1").write_bytes(b"half")
    assert [item.key for item in store.list("")] == ["a/one"]
    assert store.create("a/two", b"22")
    assert [(item.key, item.size_bytes) for item in store.list("a")] == [("a/one", 1), ("a/two", 2)]


@pytest.mark.parametrize("uri", ["ftp://host/runs", "s3://", "s3:///runs", "http://host"])
def test_places_that_no_store_speaks_to_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert caught.value.given == uri


SERVER_ANSWER = """The operation lacked the necessary privileges: Error performing PUT http://user:hunter2@host/bucket/a - 403 Forbidden: <?xml version="1.0"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature does not match.</Message><AWSAccessKeyId>AKIAXX</AWSAccessKeyId>
<StringToSign>AWS4-HMAC-SHA256</StringToSign></Error>"""


@pytest.mark.parametrize(
    ("text", "what", "next"),
    [
        (SERVER_ANSWER, "SignatureDoesNotMatch (the request signature does not match)", "access keys"),
        (
            'Generic LocalFileSystem error\n Os { code: 28, message: "No space left on device" }',
            "no space left on device",
            "free some space",
        ),
        ('Generic error\n Os { code: 30, message: "Read-only file system" }', "read-only file system", "that you may write to"),
        ("Error performing GET http://169.254.169.254/latest in 5s - timed out", "timed out", "access keys"),
        ("Error performing GET http://user:hunter2@host/b in 5s - operation timed out", "operation timed out", "can be reached"),
        ("<Code>NoSuchBucket</Code>", "NoSuchBucket", "create the bucket"),
    ],
)
def test_storage_errors_say_what_and_what_next_without_secrets(text: str, what: str, next: str) -> None:
    with pytest.raises(StoreUnavailable) as caught, _storage_errors("s3://bucket/runs", "write a"):
        raise OSError(text)
    told = str(caught.value)
    assert what in told
    assert next in told
    assert "s3://bucket/runs" in told
    for secret in ("hunter2", "AKIAXX", "HMAC"):
        assert secret not in told
    assert caught.value.__suppress_context__
    assert isinstance(caught.value, LauncherError)
