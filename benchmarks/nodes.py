"""Several nodes on one machine: hosts in network namespaces that can fall silent, and Ray nodes that can be killed. Linux, as root.

A host has a network, a host name and an /etc/hosts of its own, and shares files and processes with the machine; a switch in one more
namespace joins them. A silent host sends and receives nothing, and nobody is told: its processes live and their
connections stay open, as with a lost cable or a dead machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

OBJECT_STORE_BYTES = 150 * 2**20
END_S = 20.0
_ENTER = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


class NoNamespaces(Exception):
    """This machine or this user cannot make hosts; the message says what failed."""


class NodeFailed(Exception):
    """A Ray node did not start; its last words are in the message."""


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    namespace: str
    hosts_file: Path

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command that runs `arguments` on this host: with its network and its name, in the same files."""
        entered = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "--uts"]
        return [*entered, "sh", "-c", _ENTER, "sh", str(self.hosts_file), self.name, *arguments]


@dataclass(frozen=True)
class Network:
    hosts: tuple[Host, ...]
    switch: str

    def silence(self, host: Host) -> None:
        """From now on nothing gets through, in either direction."""
        _ip("-n", self.switch, "link", "set", host.name, "nomaster")

    def restore(self, host: Host) -> None:
        _ip("-n", self.switch, "link", "set", host.name, "master", "bridge")


@contextmanager
def network(folder: Path, count: int) -> Iterator[Network]:
    """So many hosts that hear each other; all that runs on them is killed, and they are gone, at the end. Raises NoNamespaces."""
    mark = f"lb{secrets.token_hex(3)}"
    hosts_file = folder / f"{mark}-hosts"
    hosts = tuple(Host(f"{mark}n{number}", f"10.231.77.{number + 1}", f"{mark}n{number}", hosts_file) for number in range(count))
    hosts_file.write_text(
        "".join(f"{address} {name}\n" for address, name in (("127.0.0.1", "localhost"), *((h.address, h.name) for h in hosts)))
    )
    switch = f"{mark}s"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _ip("netns", "add", host.namespace)
            _ip("-n", switch, "link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("-n", switch, "link", "set", host.name, "master", "bridge", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _ip("-n", host.namespace, "route", "add", "default", "dev", "eth0")  # Ray asks which address leads outside
        yield Network(hosts, switch)
    finally:
        for namespace in (*(host.namespace for host in hosts), switch):
            _end_all_on(namespace)
            with suppress(NoNamespaces):
                _ip("netns", "del", namespace)
        hosts_file.unlink(missing_ok=True)


class RayNode:
    """A further node of a running Ray: a raylet with its agents and workers, as `ray start` makes it."""

    def __init__(
        self,
        address: str,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        num_cpus: int = 1,
        num_gpus: int = 0,
        host: Host | None = None,
    ) -> None:
        """`num_gpus` are counted, not there: what asks for one is placed on this node."""
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={address}", f"--num-cpus={num_cpus}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats", f"--num-gpus={num_gpus}"]
        if host is not None:
            command = host.command([*command, f"--node-ip-address={host.address}"])
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )

    def wait(self, patience_s: float = 60.0) -> None:
        """Until it has joined. Raises NodeFailed. Nodes that share files are started one by one: two at once take each other's names."""
        deadline = time.monotonic() + patience_s
        while "Ray runtime started" not in (said := self._log.read_text()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NodeFailed(f"a Ray node did not start within {patience_s:g} s:\n{said[-1500:]}")
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """All that lives of it, workers too."""
        return descendants(self._process.pid)

    def kill(self) -> None:
        """As if the machine had lost its power, but for the sockets: the kernel closes them."""
        deadline = time.monotonic() + END_S
        known = {self._process.pid, *self.processes()}
        while time.monotonic() < deadline:
            known |= {child for pid in tuple(known) for child in descendants(pid)}
            living = [pid for pid in known if alive(pid)]
            if not living:
                break
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)
        self._process.wait(timeout=END_S)


def descendants(root: int) -> list[int]:
    """Pids of all processes that come from this one, as long as those between them live."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; what remains of one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _end_all_on(namespace: str) -> None:
    for _ in range(50):
        try:
            pids = [int(pid) for pid in _ip("netns", "pids", namespace).split()]
        except NoNamespaces:
            return
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _ip(*arguments: str) -> str:
    if shutil.which("ip") is None:
        raise NoNamespaces("there is no command `ip` (iproute2)")
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNamespaces(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
