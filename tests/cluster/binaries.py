"""The parts of Kubernetes and the KubeRay operator, built from their Go modules into .cache/bin: `python -m tests.cluster.binaries`.

modules/NAME/go.mod pins a version and go.sum its content. A build takes minutes the first time and is kept until its module changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ROOT / ".cache" / "bin"
MODULES = Path(__file__).resolve().parent / "modules"


@dataclass(frozen=True)
class Tool:
    """Commands that are built from one module."""

    name: str
    """Folder under modules/, and the command's name where it has only one."""
    module: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return MODULES / self.name

    @property
    def version(self) -> str:
        found = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", (self.folder / "go.mod").read_text(), re.MULTILINE)
        assert found is not None, f"{self.folder}/go.mod requires {self.module}"
        return found[1]

    @property
    def commands(self) -> tuple[Path, ...]:
        if len(self.packages) == 1:
            return (BINARIES / self.name,)
        return tuple(BINARIES / package.rpartition("/")[2] for package in self.packages)


KUBERNETES = Tool(
    "kubernetes",
    "k8s.io/kubernetes",
    tuple(
        f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet", "kubectl")
    ),
)
KUBECTL = BINARIES / "kubectl"
ETCD = Tool("etcd", "go.etcd.io/etcd/server/v3", ("go.etcd.io/etcd/server/v3",))
COREDNS = Tool("coredns", "github.com/coredns/coredns", ("github.com/coredns/coredns",))
OPERATOR = Tool("kuberay-operator", "github.com/ray-project/kuberay/ray-operator", ("github.com/ray-project/kuberay/ray-operator",))
TOOLS = (ETCD, COREDNS, OPERATOR, KUBERNETES)


class Unavailable(Exception):
    """There is no cluster to be had on this machine; says what is missing."""


def build(tool: Tool) -> bool:
    """Whether anything had to be built."""
    stamp = BINARIES / f"{tool.name}.built"
    wanted = "".join((tool.folder / name).read_text() for name in ("go.mod", "go.sum", "tools.go"))
    if stamp.exists() and stamp.read_text() == wanted and all(path.exists() for path in tool.commands):
        return False
    go = shutil.which("go")
    if go is None:
        raise Unavailable(f"{tool.name} is not built, and `go`, which builds it, is not on the PATH")
    BINARIES.mkdir(parents=True, exist_ok=True)
    output = BINARIES / tool.name if len(tool.packages) == 1 else BINARIES
    flags = " ".join(("-s -w", *_version_flags(tool)))
    command = [go, "build", "-trimpath", "-ldflags", flags, "-o", f"{output}{os.sep if output is BINARIES else ''}", *tool.packages]
    done = subprocess.run(command, cwd=tool.folder, env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{tool.name} {tool.version} could not be built:\n{done.stderr.strip()[-2000:]}")
    stamp.write_text(wanted)
    return True


def _version_flags(tool: Tool) -> tuple[str, ...]:
    """Kubernetes' commands tell their version to each other, and learn it when they are linked."""
    if tool is not KUBERNETES:
        return ()
    major, minor, _ = tool.version.removeprefix("v").split(".")
    place = "k8s.io/component-base/version"
    return f"-X {place}.gitVersion={tool.version}", f"-X {place}.gitMajor={major}", f"-X {place}.gitMinor={minor}"


def crds() -> Path:
    """The folder of the operator's custom resource definitions, in its module."""
    answer = subprocess.run(
        ["go", "list", "-m", "-json", OPERATOR.module], cwd=OPERATOR.folder, capture_output=True, text=True, check=True
    ).stdout
    return Path(json.loads(answer)["Dir"]) / "config" / "crd" / "bases"


def main() -> int:
    for tool in TOOLS:
        try:
            built = build(tool)
        except Unavailable as error:
            print(error, file=sys.stderr)
            return 1
        if built:
            print(f"built {tool.name} {tool.version}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
