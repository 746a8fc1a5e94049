"""A real S3 server for tests: versitygw, built from its Go module, on a free loopback port with keys of its own.

`python -m tests.support.s3 build` builds it into .cache/bin. Without Go the tests that need it are skipped and say why;
where the environment variable CI is set they fail instead.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "tests" / "storage" / "versitygw"
BINARY = ROOT / ".cache" / "bin" / "versitygw"
PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
BUCKET = "bucket"
START_S = 30.0


class Unavailable(Exception):
    """There is no S3 server to be had on this machine."""


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    environment: dict[str, str]
    """What a client needs: endpoint, keys and region."""
    folder: Path
    """Buckets are its folders, objects are files: a test may damage them."""

    def uri(self, prefix: str = "") -> str:
        return f"s3://{BUCKET}/{prefix}".rstrip("/")


def build() -> Path:
    """The server's binary, built when it is missing or older than the module that names its version."""
    sources = [MODULE / "go.mod", MODULE / "go.sum", MODULE / "tools.go"]
    if BINARY.exists() and BINARY.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return BINARY
    go = shutil.which("go")
    if go is None:
        raise Unavailable("the S3 server (versitygw) is not built, and `go`, which builds it, is not on the PATH")
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    unfinished = BINARY.with_name(f"{BINARY.name}.{os.getpid()}")
    command = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", os.fspath(unfinished), PACKAGE]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    done = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the S3 server (versitygw) could not be built:\n{done.stderr[-2000:]}")
    unfinished.replace(BINARY)
    return BINARY


def build_before(session: pytest.Session) -> None:
    """Build outside any test's time limit when some test will ask for the server; what fails is told by the fixture."""
    if not session.config.option.collectonly and any("s3" in getattr(item, "fixturenames", ()) for item in session.items):
        try:
            build()
        except Unavailable:
            return


@contextmanager
def serve() -> Iterator[S3Server]:
    binary = build()
    folder = Path(tempfile.mkdtemp(prefix="launcher-s3-"))
    (folder / "buckets" / BUCKET).mkdir(parents=True)
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    process, port = _start(binary, folder, {"ROOT_ACCESS_KEY_ID": access, "ROOT_SECRET_ACCESS_KEY": secret})
    endpoint = f"http://127.0.0.1:{port}"
    environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
    try:
        yield S3Server(endpoint, environment, folder / "buckets")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(binary: Path, folder: Path, keys: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    metadata = [] if _has_xattrs(folder) else ["--sidecar", os.fspath(folder / "metadata")]
    if metadata:
        (folder / "metadata").mkdir()
    with (folder / "log").open("wb") as log:
        for _ in range(5):  # another process may take the port between the look and the start
            port = _free_port()
            command = [os.fspath(binary), "--quiet", "--port", f"127.0.0.1:{port}", "posix", *metadata, os.fspath(folder / "buckets")]
            process = subprocess.Popen(
                command, env={**os.environ, **keys}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent
            )
            deadline = time.monotonic() + START_S
            while process.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        return process, port
                time.sleep(0.02)
            process.kill()
            process.wait()
    raise Unavailable(f"the S3 server (versitygw) did not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")


def _end_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _has_xattrs(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.launcher-probe", b"1")
    except (OSError, AttributeError):
        return False
    return True


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    try:
        server = serve()
        running = server.__enter__()
    except Unavailable as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the environment variables of its clients set in this process."""
    for key, value in s3.environment.items():
        monkeypatch.setenv(key, value)
    return s3


def main(arguments: Sequence[str]) -> int:
    if list(arguments) != ["build"]:
        print("usage: python -m tests.support.s3 build", file=sys.stderr)
        return 2
    try:
        print(build())
    except Unavailable as reason:
        print(f"{reason}\nTests against S3 will be skipped.", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
