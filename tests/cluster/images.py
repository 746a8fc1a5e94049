"""The images that the test cluster's pods run: made on the spot, without a registry or a container engine.

`launcher` has next to nothing in it: its containers see this machine's interpreter, libraries and this checkout's own packages through mounts
(read-only), which the container runtime adds to every container. `pause`, which holds a pod's namespaces and gets no mounts, is one static program.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.binaries import ROOT

LAUNCHER = "docker.io/library/launcher:test"
PAUSE = "registry.k8s.io/pause:3.9"
_PAUSE_SOURCE = """
#include <signal.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }
"""


def mounts() -> list[Path]:
    """What containers see of this machine."""
    ours = [ROOT / name for name in ("launcher", "configs", "models")]
    wanted = [Path("/usr"), Path("/opt"), Path(sys.prefix), Path(sys.base_prefix), *ours]
    return [path for path in dict.fromkeys(wanted) if path.exists()]


def make(folder: Path) -> dict[str, Path]:
    """Both images as archives that containerd imports, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    return {LAUNCHER: _launcher(folder), PAUSE: _pause(folder)}


def runtime_spec(path: Path) -> None:
    """The runtime's own idea of a container, with the mounts."""
    spec = json.loads(subprocess.run(["ctr", "oci", "spec"], capture_output=True, text=True, check=True).stdout)
    spec["mounts"] += [{"destination": str(place), "type": "bind", "source": str(place), "options": ["rbind", "ro"]} for place in mounts()]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # its default of 1024 is too low for Ray
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}]
    path.write_text(json.dumps(spec))


def _launcher(folder: Path) -> Path:
    root = folder / "launcher"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("usr", "etc", "tmp", "root", "proc", "sys", "dev", "var/tmp", "var/run", "home", "opt", *(str(p)[1:] for p in mounts())):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for pattern in ("passwd", "group", "nsswitch.conf", "ssl", "ld.so.*", "alternatives"):
        for source in Path("/etc").glob(pattern):
            target = root / "etc" / source.name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy(source, target)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return _archive(
        folder / "launcher.tar", LAUNCHER, root, ["sleep", "infinity"], {"PATH": path, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    )


def _pause(folder: Path) -> Path:
    root = folder / "pause"
    root.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-static", "-O2", "-x", "c", "-o", os.fspath(root / "pause"), "-"], input=_PAUSE_SOURCE, text=True, check=True)
    return _archive(folder / "pause.tar", PAUSE, root, ["/pause"], {})


def _archive(path: Path, name: str, root: Path, command: Sequence[str], environment: dict[str, str]) -> Path:
    """An image of one layer, as `docker save` writes it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(root, ".")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": [f"{key}={value}" for key, value in environment.items()], "Cmd": [*command]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    reference = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": reference, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for member, content in ((reference, config), ("manifest.json", manifest), (f"{digest}/layer.tar", layer.getvalue())):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
