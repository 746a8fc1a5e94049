"""The requirements file that is archived with the job: read as it is, refused where it cannot or must not be sent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError, JobFailed
from launcher.jobspec.packages import LIMIT_BYTES, read_requirements, verified

pytestmark = pytest.mark.unit


def refusal(folder: Path, text: str | bytes) -> ConfigError:
    (folder / "extra.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        read_requirements("extra.txt", folder)
    assert "backend.requirements" in caught.value.where
    assert caught.value.expected
    return caught.value


@pytest.mark.parametrize(
    "line",
    [
        "einops==0.8.1",
        "--index-url https://packages.example/simple",
        "--no-index\n--find-links /wheels",
        "tool @ git+ssh://git@host.example/tool.git@v1",
        "tool @ https://host.example/tool@v1.whl",
        "tool @ https://ann:${TOKEN}@host.example/tool.whl",
        "--extra-index-url https://${TOKEN}@host.example/simple",
        "-e git+https://host.example/tool.git#egg=tool",
    ],
)
def test_what_the_cluster_can_install_is_read_as_it_is(tmp_path: Path, line: str) -> None:
    data = f"# extra\n\n{line}\n".encode()
    (tmp_path / "extra.txt").write_bytes(data)
    read = read_requirements("extra.txt", tmp_path)
    assert (read.data, read.digest) == (data, hashlib.sha256(data).hexdigest())
    assert read_requirements(str(tmp_path / "extra.txt"), Path("/nowhere")) == read


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("extra.txt", "."):
        with pytest.raises(ConfigError) as caught:
            read_requirements(name, tmp_path)
        assert caught.value.where == "backend.requirements"
        assert str(tmp_path) in caught.value.given


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing yet\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "names no package" in refusal(tmp_path, text).what


def test_what_is_no_list_of_packages_is_refused(tmp_path: Path) -> None:
    assert "too large" in refusal(tmp_path, b"#" * (LIMIT_BYTES + 1)).what
    assert "not text" in refusal(tmp_path, b"PK\x03\x04\xff").what


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://ann:s3cret@host.example/simple",
        "tool @ git+https://s3cret@host.example/tool.git",
        "tool @ hg+https://s3cret@host.example/tool",
        "tool @ https://s3cret:x-oauth-basic@host.example/tool.whl",
        "# --index-url https://ann:s3cret@host.example/simple",
        "tool @ HTTPS://s3cret@host.example/tool.whl",
        "tool @ git+ssh://git:s3cret@host.example/tool.git",
        "--extra-index-url https://ann:s3cret${TOKEN}@host.example/simple",
    ],
)
def test_a_credential_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, f"einops\n{line}\n")
    assert "credential" in error.what
    assert error.given.startswith("line 2: ")
    assert "s3cret" not in str(error)


@pytest.mark.parametrize(
    "line", ["-r more.txt", "-rmore.txt", "--constraint=held.txt", "-e .", "-e ./tool", "-f wheels", "./tool.whl", "../tool"]
)
def test_what_rests_on_files_that_stay_behind_is_refused(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, f"einops\n{line}\n")
    assert error.given == f"line 2: {line}"


def test_what_was_damaged_in_the_store_is_not_used() -> None:
    data = b"einops\n"
    digest = hashlib.sha256(data).hexdigest()
    assert verified(data, digest) == data
    with pytest.raises(JobFailed, match="damaged"):
        verified(b"einop\n", digest)
