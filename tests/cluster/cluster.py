"""A real Kubernetes with the KubeRay operator on this machine: `python -m tests.cluster up | down | kill-node NAME`.

etcd, API server, controller manager, scheduler, kube-proxy and CoreDNS once; for each node a containerd and a kubelet of its own, in one bridge.
Everything lies in one folder (LAUNCHER_CLUSTER_DIR, else one under the system's temporary folder) and is reachable from this machine alone.
`up` starts what is missing, so it may be called at any time; `down` leaves nothing behind. It needs root, and Debian's packages containerd, runc,
containernetworking-plugins, iptables, iproute2, openssl and gcc.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.core.process import ProcessRef
from tests.cluster import images
from tests.cluster.binaries import BINARIES, KUBECTL, TOOLS, Unavailable, build, crds
from tests.cluster.processes import Processes
from tests.support import s3

BRIDGE = "launcher0"
PODS = "10.244"
"""Node N has the addresses PODS.N.0/24; the machine itself is PODS.0.1."""
HOST = f"{PODS}.0.1"
SERVICES = "10.96.0.0/16"
GPUS = 4
"""Of each node: counted, not there."""
S3 = f"http://{HOST}:19000"
BUCKET = "bucket"
STORE_SECRET = "launcher-store"
SERVER = f"https://{HOST}:6443"
ETCD = "http://127.0.0.1:23790"
NEEDED = ("containerd", "runc", "ctr", "iptables-save", "ip", "gcc", "openssl")
READY_S = 120.0
CONTAINER_LOGS = Path("/var/log/containers")
"""In which every kubelet makes links to the logs of its containers."""
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def folder() -> Path:
    return Path(os.environ.get("LAUNCHER_CLUSTER_DIR") or Path(tempfile.gettempdir()) / "launcher-cluster")


class Cluster:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = Processes(folder / "processes")
        self.kubeconfig = folder / "kubeconfig"

    def up(self, nodes: int = 2) -> None:
        """Raises Unavailable where this machine lacks something, RuntimeError with a log's end where something does not start."""
        missing = [name for name in NEEDED if shutil.which(name) is None]
        if missing or os.geteuid() != 0:
            raise Unavailable(f"not on this machine: {', '.join(missing)}" if missing else "the test cluster needs root")
        if not self._folder.exists() and "KUBE-" in _run("iptables-save"):
            raise Unavailable(
                "another Kubernetes is at work on this machine, and `down` would take its rules away: name it in LAUNCHER_KUBECONFIG"
            )
        for tool in TOOLS:
            build(tool)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._network()
        self._control_plane()
        archives = None
        for number in range(1, nodes + 1):
            if not self._processes.alive(f"kubelet-node{number}"):
                archives = archives or images.make(self._folder / "images")
                self._node(number, archives)
        self._operator()
        self._store()
        for number in range(1, nodes + 1):
            self._wait(f"node{number} joins", lambda name=f"node{number}": self.kubectl("get", "node", name, check=False) != "")
            self._count_gpus(f"node{number}")
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={READY_S:g}s")

    def down(self) -> None:
        if not self._folder.exists():
            return
        self._processes.end("kuberay-operator", grace_s=5.0)
        for node in self.nodes():
            self.kill_node(node)
        for name in reversed(self._processes.names()):
            self._processes.end(name, grace_s=0.5)  # the API server would linger for a minute
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self._folder}/"):
                _run("umount", "-l", line.split()[1], check=False)
        for name in _run("ip", "netns", "list").split():
            if name.startswith("cni-") and f" {PODS}." in _run("ip", "netns", "exec", name, "ip", "-4", "addr", check=False):
                _run("ip", "netns", "del", name, check=False)
        for link in CONTAINER_LOGS.glob("*.log"):
            if str(link.readlink()).startswith(f"{self._folder}/"):
                link.unlink()
        _run("ip", "link", "del", BRIDGE, check=False)
        rules = "\n".join(line for line in _run("iptables-save").splitlines() if "KUBE-" not in line and "CNI-" not in line)
        subprocess.run(["iptables-restore"], input=f"{rules}\n", text=True, check=False, capture_output=True)
        FORWARDING.write_text((self._folder / "ip_forward").read_text())
        shutil.rmtree(self._folder)

    def processes(self) -> dict[str, ProcessRef]:
        return {name: process for name in self._processes.names() if (process := self._processes.find(name)) is not None}

    def dead(self) -> list[str]:
        """Parts that ended although nobody ended them."""
        return [name for name in self._processes.names() if not self._processes.alive(name)]

    def nodes(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("node[0-9]*"))

    def kill_node(self, name: str) -> None:
        """The whole node goes silent at once: kubelet, containerd and every process of its containers."""
        self._processes.end(f"kubelet-{name}", grace_s=0.0)
        self._processes.end(f"containerd-{name}", grace_s=0.0)
        for shim in self._shims(name):
            for process in (*_descendants(shim), shim):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def restart_operator(self) -> None:
        with self.without("kuberay-operator"):
            pass

    @contextmanager
    def without(self, part: str) -> Iterator[None]:
        """While in the context, a process of the control plane does not run."""
        self._processes.end(part, grace_s=5.0 if part == "kuberay-operator" else 0.5)
        try:
            yield
        finally:
            self.up(len(self.nodes()))

    def restart_store(self, *, pause_s: float) -> None:
        self._processes.end("s3", grace_s=5.0)
        time.sleep(pause_s)
        self._store()

    @property
    def store_environment(self) -> dict[str, str]:
        """What a client of the S3 server needs, on this machine and in a pod."""
        keys: dict[str, str] = json.loads((self._folder / "s3.json").read_text())
        return {"AWS_ENDPOINT_URL": S3, "AWS_REGION": "us-east-1", **keys}

    def kubectl(self, *words: str, check: bool = True, given: str | None = None) -> str:
        return _run(str(KUBECTL), f"--kubeconfig={self.kubeconfig}", *words, check=check, given=given)

    # the parts

    def _network(self) -> None:
        if not (self._folder / "ip_forward").exists():
            self._write("ip_forward", FORWARDING.read_text())
        FORWARDING.write_text("1")
        if not Path(f"/sys/class/net/{BRIDGE}").exists():
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
            _run("ip", "addr", "add", f"{HOST}/16", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")

    def _control_plane(self) -> None:
        self._credentials()
        here, processes = self._folder, self._processes
        processes.start(
            "etcd",
            [
                BINARIES / "etcd",
                f"--data-dir={here / 'etcd'}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={ETCD}",
                f"--advertise-client-urls={ETCD}",
                "--listen-peer-urls=http://127.0.0.1:23800",
                "--log-level=error",
            ],
        )
        processes.start(
            "apiserver",
            [
                BINARIES / "kube-apiserver",
                f"--etcd-servers={ETCD}",
                "--secure-port=6443",
                f"--bind-address={HOST}",
                f"--advertise-address={HOST}",
                f"--cert-dir={here / 'certificates'}",
                f"--token-auth-file={here / 'tokens.csv'}",
                "--authorization-mode=Node,RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={here / 'accounts.pub'}",
                f"--service-account-signing-key-file={here / 'accounts.key'}",
                f"--service-cluster-ip-range={SERVICES}",
                "--kubelet-preferred-address-types=InternalIP",
            ],
            ready=lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok",
        )
        processes.start(
            "controller-manager",
            [
                BINARIES / "kube-controller-manager",
                f"--kubeconfig={self.kubeconfig}",
                f"--service-account-private-key-file={here / 'accounts.key'}",
                "--use-service-account-credentials=true",
                f"--root-ca-file={here / 'certificates' / 'apiserver.crt'}",
                "--leader-elect=false",
                "--node-monitor-grace-period=12s",
                "--node-monitor-period=2s",
            ],
        )
        processes.start("scheduler", [BINARIES / "kube-scheduler", f"--kubeconfig={self.kubeconfig}", "--leader-elect=false"])
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig)},
            "mode": "iptables",
            "clusterCIDR": f"{PODS}.0.0/16",
            "hostnameOverride": "node1",
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
        processes.start("proxy", [BINARIES / "kube-proxy", f"--config={self._write('proxy.json', json.dumps(proxy))}"])
        names = f"""
        .:53 {{
            bind {HOST}
            errors
            kubernetes cluster.local in-addr.arpa {{
                kubeconfig {self.kubeconfig} test
                pods insecure
                ttl 1
            }}
        }}
        """
        processes.start("dns", [BINARIES / "coredns", f"-conf={self._write('Corefile', names)}"])

    def _credentials(self) -> None:
        here = self._folder
        if not (here / "accounts.key").exists():
            _run("openssl", "genrsa", "-out", str(here / "accounts.key"), "2048")
            _run("openssl", "rsa", "-in", str(here / "accounts.key"), "-pubout", "-out", str(here / "accounts.pub"))
            token = secrets.token_hex(16)
            self._write("tokens.csv", f"{token},admin,admin,system:masters\n")
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {"name": "test", "cluster": {"server": SERVER, "certificate-authority": str(here / "certificates" / "apiserver.crt")}}
                ],
                "users": [{"name": "admin", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                "current-context": "test",
            }
            self._write("kubeconfig", json.dumps(config))

    def _node(self, number: int, archives: dict[str, Path]) -> None:
        name, here, address = f"node{number}", self._folder / f"node{number}", f"{PODS}.{number}.1"
        for part in ("root", "state", "kubelet", "cni", "logs"):
            (here / part).mkdir(parents=True, exist_ok=True)
        _run("ip", "addr", "replace", f"{address}/16", "dev", BRIDGE)
        images.runtime_spec(self._folder / "runtime-spec.json")
        containerd = self._write(f"{name}/containerd.toml", _containerd(here, self._folder / "runtime-spec.json"))
        self._write(f"{name}/cni/10-bridge.conflist", json.dumps(_pod_network(number, here)))
        kubelet = self._write(f"{name}/kubelet.json", json.dumps(_kubelet(here, address)))
        socket = here / "containerd.sock"
        self._processes.start(
            f"containerd-{name}",
            ["containerd", "-c", containerd],
            ready=lambda: _run("ctr", "-a", str(socket), "version", check=False) != "",
        )
        for archive in archives.values():
            _run("ctr", "-a", str(socket), "-n", "k8s.io", "images", "import", str(archive))
        self._processes.start(
            f"kubelet-{name}",
            [
                BINARIES / "kubelet",
                f"--config={kubelet}",
                f"--kubeconfig={self.kubeconfig}",
                f"--root-dir={here / 'kubelet'}",
                f"--hostname-override={name}",
                f"--node-ip={address}",
            ],
        )

    def _operator(self) -> None:
        if self._processes.alive("kuberay-operator"):
            return
        self.kubectl("apply", "--server-side", "-f", str(crds()))
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", f"--timeout={READY_S:g}s")
        self._processes.start(
            "kuberay-operator",
            [
                BINARIES / "kuberay-operator",
                f"-kubeconfig={self.kubeconfig}",
                "-enable-leader-election=false",
                "-use-kubernetes-proxy",
                "-metrics-addr=127.0.0.1:18080",
                "-health-probe-bind-address=127.0.0.1:18082",
            ],
        )

    def _store(self) -> None:
        """The S3 server with one bucket, and the Secret by which pods reach it."""
        binary, here = s3.build(), self._folder / "s3"
        if not (self._folder / "s3.json").exists():
            (here / "buckets" / BUCKET).mkdir(parents=True)
            (here / "metadata").mkdir()
            keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
            self._write("s3.json", json.dumps(keys))
        environment = self.store_environment
        root = {"ROOT_ACCESS_KEY_ID": environment["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_ACCESS_KEY": environment["AWS_SECRET_ACCESS_KEY"]}
        address = S3.removeprefix("http://")
        self._processes.start(
            "s3",
            [binary, "--quiet", "--port", address, "posix", "--sidecar", here / "metadata", here / "buckets"],
            ready=lambda: _listens(address),
            environment=root,
        )
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE_SECRET}, "stringData": environment}
        self.kubectl("apply", "-f", "-", given=json.dumps(secret))

    def _count_gpus(self, node: str) -> None:
        patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(GPUS)}]
        self.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch))

    # help

    def _write(self, name: str, text: str) -> Path:
        """A file that says this already is left alone: kube-proxy ends when its configuration is written."""
        path = self._folder / name
        if path.exists() and path.read_text() == text:
            return path
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {READY_S:g} s: {what}")
            time.sleep(0.25)

    def _shims(self, node: str) -> list[int]:
        """containerd's shims outlive it, and hold the containers."""
        place = os.fspath(self._folder / node)
        return [pid for pid, words in _commands() if "containerd-shim" in words[0] and any(word.startswith(f"{place}/") for word in words)]


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _commands() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since it was listed
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            yield int(path.name), words


def _descendants(process: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                found += [*_descendants(int(child)), int(child)]
    return found


def _run(*words: str, check: bool = True, given: str | None = None) -> str:
    """Its output. Raises RuntimeError with what it said."""
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout if done.returncode == 0 else ""


def _containerd(here: Path, spec: Path) -> str:
    return f"""
    version = 2
    root = "{here}/root"
    state = "{here}/state"
    [grpc]
      address = "{here}/containerd.sock"
    [plugins."io.containerd.grpc.v1.cri"]
      sandbox_image = "{images.PAUSE}"
      disable_apparmor = true
      restrict_oom_score_adj = true
      stream_server_port = "0"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        base_runtime_spec = "{spec}"
      [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "/usr/lib/cni"
        conf_dir = "{here}/cni"
    """


def _pod_network(number: int, here: Path) -> dict[str, object]:
    addresses = {
        "subnet": f"{PODS}.0.0/16",
        "rangeStart": f"{PODS}.{number}.2",
        "rangeEnd": f"{PODS}.{number}.250",
        "gateway": HOST,
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[addresses]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": f"{here}/addresses"},
    }
    return {"cniVersion": "0.4.0", "name": f"pods-{number}", "plugins": [bridge]}


def _kubelet(here: Path, address: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "address": address,
        "port": 10250,
        "healthzBindAddress": address,
        "healthzPort": 10248,
        # A kubelet removes the logs of pods that it does not know: in one folder for all nodes, those of the others.
        "podLogsDir": f"{here}/logs",
        "readOnlyPort": 0,
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 8,
        "syncFrequency": "10s",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "clusterDNS": [HOST],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{here}/containerd.sock",
    }


def main(words: Sequence[str]) -> int:
    cluster = Cluster(folder())
    match list(words):
        case ["up"]:
            cluster.up()
            print(cluster.kubeconfig)
        case ["down"]:
            cluster.down()
        case ["kill-node", name] if name in cluster.nodes():
            cluster.kill_node(name)
        case _:
            print(f"usage: python -m tests.cluster up | down | kill-node {' | '.join(cluster.nodes()) or 'NAME'}")
            return 2
    return 0
