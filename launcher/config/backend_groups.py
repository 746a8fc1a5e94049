"""The choices of the group `backend`: one frozen dataclass for each. See groups.py for what the types and the texts are used for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from launcher.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A Ray on this machine, shared by all jobs."""

    name: Literal["local"] = "local"


@dataclass(frozen=True, kw_only=True)
class KubeRayConfig:
    """A Ray cluster of its own on Kubernetes, made and taken away by the KubeRay operator."""

    name: Literal["kuberay"] = "kuberay"
    context: str | None = None
    """Context of the kubeconfig; null: its current one."""
    namespace: str | None = None
    """Namespace of the job; null: that of the context, else `default`."""
    image: str
    """An image with launcher, Ray and torch of the versions that submit; see docs/kubernetes.md#the-image."""
    requirements: str | None = None
    """A file in pip's requirements format: extra packages, installed on each machine of the job beside what the image has."""
    secret: str | None = None
    """Name of a Secret in the namespace whose keys become environment variables of the controller: those of the run store and of W&B, and
    those that `environment` refers to."""
    priority_class: str | None = None
    """PriorityClass of the pods; null: none is named."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes on which workers may run."""
    tolerations: tuple[dict[str, object], ...] = ()
    """Taints that workers tolerate, as Kubernetes writes tolerations."""
    cpu: str = "1"
    """CPUs of one worker, as a Kubernetes quantity."""
    memory: str = "4Gi"
    """Memory of one worker, as a Kubernetes quantity; shared memory counts."""
    gpu_resource: str = "nvidia.com/gpu"
    """What `gpu` counts: `nvidia.com/gpu`, or a slice such as `nvidia.com/mig-1g.10gb`."""
    autoscaled_nodes: bool = False
    """Nodes come when pods wait for them: a job that the nodes there now have no room for is not refused."""
    head_cpu: str = "1"
    """CPUs of the head, which carries Ray and the controller and no worker."""
    head_memory: str = "8Gi"
    """Memory of the head."""
    overlay: dict[str, object] = field(default_factory=dict)
    """Merged into the pod template of the workers, for what has no key of its own. Containers, volumes, environment variables and mounts are
    merged by their names, so that a sidecar is added and the worker's own container, `ray-worker`, is changed; other lists replace, null
    removes."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """A Ray cluster that is there already, with launcher, Ray and torch of the versions that submit."""

    name: Literal["ray"] = "ray"
    address: str
    """Address of the cluster's dashboard, which takes the jobs: `http://HOST:8265`. See
    docs/configuration.md#a-ray-cluster-that-is-there."""
    token_file: str | None = None
    """File on this machine with the cluster's token, absolute or under `~`; null: `RAY_AUTH_TOKEN`, else the file that Ray itself would
    read."""

    def __post_init__(self) -> None:
        self._check_address()
        if self.token_file is not None and not self.token_file.startswith(("/", "~")):
            raise ConfigError(
                "the path of the token depends on the folder that one is in, and every command has to find it",
                where="backend.token_file",
                given=self.token_file,
                expected="an absolute path, or one that begins with ~",
            )

    def _check_address(self) -> None:
        try:
            parts = urlsplit(self.address)
            whole = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
            )
        except ValueError:  # the port is no number, or a bracket is not closed
            whole = False
        if not whole:
            raise ConfigError(
                "this is not the address of a Ray dashboard",
                where="backend.address",
                given=_without_user(self.address),
                expected="http://HOST:8265 or https://HOST/PATH; jobs go through the dashboard, not through ray:// or the port 6379",
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                "the address holds a user or a password, and addresses are recorded",
                where="backend.address",
                given=_without_user(self.address),
                expected="an address alone, with the token in a file",
                next="set backend.token_file, or RAY_AUTH_TOKEN",
            )


def _without_user(address: str) -> str:
    """The address as it may be shown: a user and a password in it are left out."""
    before, at, after = address.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else address


BackendConfig = LocalConfig | KubeRayConfig | RayConfig
"""Where the job runs: which keys there are follows from the name."""
