from __future__ import annotations

import io
import os
import subprocess
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launcher.config.shipped import shipped_folder
from launcher.core.errors import ConfigError, JobFailed
from launcher.jobspec.code import archive, unpack

pytestmark = pytest.mark.unit


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return write(tmp_path / "shipped", {"models/resnet.py": "shipped", "models/mlp.py": "shipped", "configs/train.yaml": "a: 1"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


SHIPPED = ("models/mlp.py", "models/resnet.py")


def test_a_plain_folder_goes_without_caches_and_environments(folder: Path, shipped: Path) -> None:
    write(folder, {"train.py": "1", "sub/data.txt": "2", "__pycache__/a.pyc": "", ".venv/x": "", "env/pyvenv.cfg": "", "env/lib.py": ""})
    write(folder, {"runs/r1/spec-1.json": "{}", "nested/.git/config": "", "nested/kept.py": "", "a.egg-info/x": ""})
    found = archive(folder, shipped, exclude=[Path("runs")])
    assert found.files == (*SHIPPED, "nested/kept.py", "sub/data.txt", "train.py")
    assert (found.git_commit, found.git_dirty) == (None, False)
    assert archive(folder, shipped, exclude=[folder / "runs"]) == found


def test_in_git_it_is_what_git_would_commit(folder: Path, shipped: Path) -> None:
    write(folder, {".gitignore": "data/\n*.log\n", "train.py": "1", "gone.py": "1", "é b.py": "1", "out.log": "x", "data/big": "x"})
    git(folder, "init")
    unborn = archive(folder, shipped)
    assert (unborn.git_commit, unborn.git_dirty) == (None, True)
    git(folder, "add", ".")
    git(folder, "commit", "-m", "a")
    clean = archive(folder, shipped)
    assert clean.git_commit is not None
    assert len(clean.git_commit) == 40
    assert not clean.git_dirty
    assert clean.files == (".gitignore", "gone.py", *SHIPPED, "train.py", "é b.py")
    (folder / "gone.py").unlink()
    write(folder, {"new.py": "untracked", "runs/r1/spec.json": "{}"})
    dirty = archive(folder, shipped, exclude=[folder / "runs"])
    assert dirty.files == (".gitignore", *SHIPPED, "new.py", "train.py", "é b.py")
    assert dirty.git_commit == clean.git_commit
    assert dirty.git_dirty


def test_an_excluded_folder_does_not_make_it_dirty(folder: Path, shipped: Path) -> None:
    git(write(folder, {"train.py": "1"}), "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "a")
    write(folder, {"runs/r1/spec.json": "{}"})
    assert archive(folder, shipped).git_dirty
    assert not archive(folder, shipped, exclude=[folder / "runs"]).git_dirty


def test_a_folder_inside_a_repository_goes_alone(folder: Path, shipped: Path) -> None:
    write(folder, {"outside.py": "1", "part/inside.py": "2", "ignored/own.py": "3", ".gitignore": "ignored/"})
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "a")
    (folder / "outside.py").write_text("changed")
    part = archive(folder / "part", shipped)
    assert part.files == ("inside.py", *SHIPPED)
    assert not part.git_dirty
    ignored = archive(folder / "ignored", shipped)
    assert ignored.files == (*SHIPPED, "own.py")
    assert ignored.git_commit is None


def test_a_repository_inside_and_git_in_the_environment_do_not_disturb(
    folder: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(write(folder, {"train.py": "1", "lib/code.py": "2"}), "init")
    git(folder / "lib", "init")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert archive(folder, shipped).files == ("lib/code.py", *SHIPPED, "train.py")


def test_own_models_stand_beside_the_shipped_ones(folder: Path, shipped: Path, tmp_path: Path) -> None:
    write(folder, {"models/mine.py": "mine", "models/mlp.py": "mine"})
    found = archive(folder, shipped)
    assert found.files == ("models/mine.py", "models/mlp.py", "models/resnet.py")
    place = unpack(found.data, found.digest, tmp_path / "code")
    assert (place / "models/mlp.py").read_text() == "mine"
    assert (place / "models/resnet.py").read_text() == "shipped"
    assert archive(write(tmp_path / "one", {"models.py": "mine"}), shipped).files == ("models.py",)


def test_nothing_is_a_fine_amount_of_code(folder: Path, tmp_path: Path) -> None:
    found = archive(folder, write(tmp_path / "bare", {"configs/a": ""}))
    assert found.files == ()
    assert list(unpack(found.data, found.digest, tmp_path / "code").iterdir()) == []


def test_the_same_tree_gives_the_same_bytes_and_any_change_another_digest(folder: Path, shipped: Path, tmp_path: Path) -> None:
    write(folder, {"a.py": "1", "b/c.py": "2"})
    first = archive(folder, shipped)
    copy = write(tmp_path / "copy", {"b/c.py": "2", "a.py": "1"})
    os.utime(copy / "a.py", (0, 0))
    assert archive(copy, shipped).data == first.data
    changes: list[Callable[[], object]] = [
        lambda: (copy / "a.py").chmod(0o755),
        lambda: (copy / "a.py").write_text("2"),
        lambda: (copy / "a.py").rename(copy / "d.py"),
        lambda: write(copy, {"e.py": ""}),
    ]
    digests = {first.digest}
    for change in changes:
        change()
        digests.add(archive(copy, shipped).digest)
    assert len(digests) == 1 + len(changes)


@pytest.mark.parametrize(
    "path",
    [
        *(".env", "sub/.env.local", "key.pem", "a/server.KEY", "id_rsa", "id_ed25519", ".netrc", "kubeconfig", "credentials.json"),
        *(".aws/config", "x/service-account-prod.json", ".git-credentials"),
    ],
)
def test_files_that_look_like_secrets_stay_unless_they_are_listed(path: str, folder: Path, shipped: Path) -> None:
    write(folder, {"train.py": "1", path: "hush"})
    with pytest.raises(ConfigError) as caught:
        archive(folder, shipped)
    assert caught.value.where == "code.allow"
    assert path in caught.value.given
    assert "hush" not in str(caught.value)
    assert path in archive(folder, shipped, allow=[path]).files
    assert path in archive(folder, shipped, allow=[f"./{path}"]).files


def test_names_that_only_resemble_secrets_are_archived(folder: Path, shipped: Path) -> None:
    names = {"keyboard.py": "", "environment.py": "", "id_rsa.pub": "", ".env.example": "", "tokens.py": ""}
    assert set(archive(write(folder, names), shipped).files) >= set(names)


def test_a_link_under_a_harmless_name_does_not_smuggle_a_secret(folder: Path, shipped: Path) -> None:
    git(write(folder, {".env": "hush", ".gitignore": ".env"}), "init")
    (folder / "settings").symlink_to(".env")
    with pytest.raises(ConfigError, match="settings"):
        archive(folder, shipped)


def test_links_inside_become_copies(folder: Path, shipped: Path, tmp_path: Path) -> None:
    write(folder, {"real/a.py": "1", "real/deep/b.py": "2"})
    (folder / "file.py").symlink_to("real/a.py")
    (folder / "folder").symlink_to("real")
    (folder / "lost").symlink_to("nothing")
    found = archive(folder, shipped)
    assert set(found.files) == {*SHIPPED, "file.py", "folder/a.py", "folder/deep/b.py", "real/a.py", "real/deep/b.py"}
    place = unpack(found.data, found.digest, tmp_path / "code")
    assert (place / "folder/deep/b.py").read_text() == "2"
    assert not any(path.is_symlink() for path in place.rglob("*"))


@pytest.mark.parametrize("target", ["/etc", "../other", "../other/secret", ".", "loop"])
@pytest.mark.parametrize("in_git", [False, True])
def test_links_that_lead_out_or_round_are_refused(target: str, in_git: bool, folder: Path, shipped: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", {"secret": "x"})
    write(folder, {"a.py": "1"})
    (folder / "loop").symlink_to(target)
    if in_git:
        git(folder, "init")
    with pytest.raises(ConfigError, match="link") as caught:
        archive(folder, shipped)
    assert str(folder / "loop") in caught.value.where


def test_a_tracked_file_behind_a_folder_that_became_a_link_is_refused(folder: Path, shipped: Path, tmp_path: Path) -> None:
    git(write(folder, {"sub/a.py": "1"}), "init")
    git(folder, "add", ".")
    (folder / "sub").rename(tmp_path / "elsewhere")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out"):
        archive(folder, shipped)


def test_too_much_names_the_largest(folder: Path, shipped: Path) -> None:
    write(folder, {"large.bin": "x" * 3000, "larger.bin": "x" * 6000, "small.py": "x"})
    with pytest.raises(ConfigError) as caught:
        archive(folder, shipped, limit_bytes=8000)
    assert caught.value.given.index("larger.bin") < caught.value.given.index("large.bin")
    assert len(archive(folder, shipped, limit_bytes=10_000).files) == 5


def test_unpacking_restores_content_and_modes_once(folder: Path, shipped: Path, tmp_path: Path) -> None:
    write(folder, {"run.sh": "#!/bin/sh", "sub/a.py": "é"})
    (folder / "run.sh").chmod(0o755)
    found = archive(folder, shipped)
    place = unpack(found.data, found.digest, tmp_path / "code")
    assert place == tmp_path / "code" / found.digest
    assert os.access(place / "run.sh", os.X_OK)
    assert not os.access(place / "sub/a.py", os.X_OK)
    (place / "mark").touch()
    assert unpack(found.data, found.digest, tmp_path / "code") == place
    assert (place / "mark").exists()


def test_many_may_unpack_at_once(folder: Path, shipped: Path, tmp_path: Path) -> None:
    found = archive(write(folder, {f"m{number}.py": "x" * 100 for number in range(30)}), shipped)
    places: list[Path] = []
    ready = threading.Barrier(6)

    def attempt() -> None:
        ready.wait()
        place = unpack(found.data, found.digest, tmp_path / "code")
        assert len(list(place.glob("*.py"))) == 30
        places.append(place)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places == [tmp_path / "code" / found.digest] * 6
    assert [path.name for path in (tmp_path / "code").iterdir()] == [found.digest]


def test_a_damaged_archive_is_never_unpacked(folder: Path, shipped: Path, tmp_path: Path) -> None:
    found = archive(write(folder, {"a.py": "print(1)" * 20}), shipped)
    refused = 0
    for position in range(0, len(found.data), 3):
        damaged = found.data[:position] + bytes([found.data[position] ^ 1]) + found.data[position + 1 :]
        try:
            place = unpack(damaged, found.digest, tmp_path / str(position))
        except JobFailed:
            refused += 1
            assert not (tmp_path / str(position)).exists()
        else:  # a bit that says nothing about the files, such as a date
            assert archive(place, shipped).digest == found.digest
    assert refused > len(found.data) // 9
    with pytest.raises(JobFailed, match="damaged"):
        unpack(found.data, "0" * 64, tmp_path / "code")


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "a\\..\\evil.py", "./a.py", "link"])
def test_an_entry_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        target.writestr(entry, "x")
    with pytest.raises(JobFailed, match="damaged") as caught:
        unpack(buffer.getvalue(), "0" * 64, tmp_path / "code")
    assert "not a file inside the folder" in caught.value.given
    assert not (tmp_path / "code").exists()


def test_the_shipped_folder_has_configurations_and_models() -> None:
    assert (shipped_folder() / "configs" / "train.yaml").is_file()
    assert (shipped_folder() / "models" / "resnet.py").is_file()
