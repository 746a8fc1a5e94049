"""Object storage behind five verbs. The one primitive that everything rests on is `create`: write if absent.

Keys are relative, with `/` between parts. Compare-and-swap is not offered, because local folders cannot do it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launcher.core.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from datetime import timedelta

    from obstore.store import ObjectStore as AnyStore

SCHEMES = ("s3", "gs", "az", "file")


class KeyMissing(KeyError):
    """There is no object under the key."""


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size_bytes: int


class ObjectStore(Protocol):
    """Every verb raises StoreUnavailable where the place cannot be used now."""

    uri: str

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises KeyMissing."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write, replacing what is there."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write if absent; False when the key exists already, also when this very call wrote it and the answer was lost."""
        ...

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Every object whose key begins with the folder `prefix` ("" for all), sorted by key."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a missing one is no error."""
        ...


def is_local(uri: str) -> bool:
    """Whether a store URI names a folder of this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The folder of a local store URI."""
    return Path(uri.removeprefix("file://")).expanduser().absolute()


def open_store(uri: str, *, create: bool = False) -> ObjectStore:
    """The store at a folder or at scheme://bucket/prefix; keys and endpoints come from the usual environment variables.

    With `create`, a local folder is made when it is missing; otherwise a missing one reads as empty.
    Raises ConfigError for a scheme that is not known and StoreUnavailable where the place cannot be used.
    """
    if is_local(uri):
        return _open_local(local_path(uri), create=create)
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"no store speaks {scheme}://",
            where="runs",
            given=uri,
            expected="a folder, or a URI that begins with " + ", ".join(f"{known}://" for known in SCHEMES),
        )
    if not uri.partition("://")[2].partition("/")[0]:
        raise ConfigError("the store has no bucket", where="runs", given=uri, expected=f"{scheme}://bucket or {scheme}://bucket/prefix")
    from obstore.store import from_url

    options: dict[str, Any] = {"client_options": {"timeout": "60s", "connect_timeout": "5s"}}
    options["retry_config"] = {"max_retries": 6, "retry_timeout": _seconds(30)}
    if scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["client_options"]["allow_http"] = True
    with _storage_errors(uri, "open"):
        return ObstoreStore(uri, from_url(uri, **options))


def _open_local(folder: Path, *, create: bool) -> ObjectStore:
    from obstore.store import LocalStore

    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"the folder for runs cannot be made: {error.strerror}",
                where="runs",
                given=str(folder),
                expected="a folder that you may write to",
                next="set runs= (or --runs, or LAUNCHER_RUNS) to another place",
            ) from error
    if not folder.is_dir():
        return EmptyStore(str(folder))
    return ObstoreStore(str(folder), LocalStore(folder))


def _seconds(number: float) -> timedelta:
    from datetime import timedelta

    return timedelta(seconds=number)


class EmptyStore:
    """A local folder that is not there yet: reads as empty, refuses writes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def get(self, key: str) -> bytes:
        raise KeyMissing(key)

    def put(self, key: str, data: bytes) -> None:
        raise StoreUnavailable("the folder for runs does not exist", where="runs", given=self.uri)

    def create(self, key: str, data: bytes) -> bool:
        raise StoreUnavailable("the folder for runs does not exist", where="runs", given=self.uri)

    def list(self, prefix: str) -> list[ObjectInfo]:
        return []

    def delete(self, keys: Iterable[str]) -> None:
        pass


class ObstoreStore:
    """Any store that obstore speaks to."""

    def __init__(self, uri: str, store: AnyStore) -> None:
        self.uri = uri
        self._store = store

    def get(self, key: str) -> bytes:
        import obstore

        with self._errors(f"read {key}"):
            try:
                return obstore.get(self._store, key).bytes().to_bytes()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise KeyMissing(key) from None

    def put(self, key: str, data: bytes) -> None:
        import obstore

        with self._errors(f"write {key}"):
            obstore.put(self._store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        import obstore

        with self._errors(f"create {key}"):
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def list(self, prefix: str) -> list[ObjectInfo]:
        import obstore

        with self._errors(f"list {prefix or '/'}"):
            pages = obstore.list(self._store, prefix or None)
            found = [ObjectInfo(item["path"], item["size"]) for page in pages for item in page]
        return sorted(found, key=lambda item: item.key)

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            with self._errors(f"delete {key}"):
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        with _storage_errors(self.uri, doing):
            yield


@contextmanager
def _storage_errors(uri: str, doing: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        text = str(error)
        # Not chained: what a server answers may repeat the request, with access key and signature.
        raise StoreUnavailable(f"the run store failed to {doing}: {_cause(text)}", where="runs", given=uri, next=_advice(text)) from None


def _cause(text: str) -> str:
    """The server's own words, or the operating system's, at the bottom of a storage error; else its first line without addresses."""
    code, message = re.search(r"<Code>([^<]+)</Code>", text), re.search(r"<Message>([^<]+)</Message>", text)
    if code:
        return f"{code[1]} ({message[1].rstrip('.').lower()})" if message else code[1]
    system = re.search(r'message: "([^"]+)"', text)
    if system:
        return system[1].lower()
    return re.sub(r"\S+://\S+", "...", text.partition("\n")[0])


def _advice(text: str) -> str:
    lowered = text.lower()
    if "no space left" in lowered or "quota exceeded" in lowered:
        return "free some space, then `launch resume RUN`"
    if "nosuchbucket" in lowered:
        return "create the bucket, or correct its name"
    if "read-only" in lowered or "permission denied" in lowered:
        return "set runs= to a place that you may write to"
    # Without keys in the environment the client asks the metadata service of a cloud machine for some.
    if any(sign in lowered for sign in ("403", "401", "accessdenied", "credential", "169.254.169.254")):
        return "check the access keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
    return "check that the store can be reached from here"
