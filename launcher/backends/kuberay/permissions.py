"""The rights that an account needs in its namespace: those that jobs need, and those that jobs run without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.backends.base import Finding
from launcher.backends.kuberay.checks_api import ChecksApi
from launcher.core.errors import LauncherError

RIGHTS, FURTHER_RIGHTS = "rights", "further rights"


@dataclass(frozen=True)
class Right:
    group: str
    resource: str
    """A subresource follows a slash, as in a Role: services/proxy."""
    verbs: tuple[str, ...]


@dataclass(frozen=True)
class Lack:
    """The verbs of a right that an account does not have."""

    right: Right
    verbs: tuple[str, ...]

    def __str__(self) -> str:
        group = f".{self.right.group}" if self.right.group else ""
        return f"{','.join(self.verbs)} {self.right.resource}{group}"


NEEDED = (
    Right("ray.io", "rayjobs", ("create", "get", "list", "delete")),
    # Only an account that has a right can grant it: a job's Role gives these two to its controller.
    Right("ray.io", "rayclusters", ("get", "patch")),
    Right("policy", "poddisruptionbudgets", ("create", "get", "patch")),
    Right("", "serviceaccounts", ("create", "patch")),
    Right("rbac.authorization.k8s.io", "roles", ("create", "patch")),
    Right("rbac.authorization.k8s.io", "rolebindings", ("create", "patch")),
    Right("", "pods", ("list",)),
)
PROBE = Right("", "pods", ("create", "get", "delete"))
FURTHER = (
    Right("", "services/proxy", ("get",)),
    Right("", "secrets", ("get",)),
    Right("", "events", ("list",)),
    PROBE,
)
"""Jobs run without them: they serve the dashboard and its token, the reasons of a wait, and the checks' own pod."""


@dataclass(frozen=True)
class Rights:
    needed: Finding
    further: Finding
    may_probe: bool
    """Whether the account may have a pod for the checks; True where that is not known."""


def examine_rights(api: ChecksApi) -> Rights:
    try:
        needed, further = lacking(api, NEEDED), lacking(api, FURTHER)
    except LauncherError as error:
        return Rights(Finding.of_error(RIGHTS, error), Finding.warning(FURTHER_RIGHTS, "not known"), may_probe=True)
    may_probe = PROBE not in [lack.right for lack in further]
    return Rights(judge_needed(needed, api.namespace), judge_further(further, api.namespace), may_probe)


def lacking(api: ChecksApi, rights: Sequence[Right]) -> list[Lack]:
    found = []
    for right in rights:
        resource, _, subresource = right.resource.partition("/")
        verbs = tuple(verb for verb in right.verbs if not api.allows(verb, right.group, resource, subresource))
        if verbs:
            found.append(Lack(right, verbs))
    return found


def judge_needed(lacks: Sequence[Lack], namespace: str) -> Finding:
    if not lacks:
        return Finding.ok(RIGHTS, "this account may start, follow and end jobs")
    return Finding.failed(
        RIGHTS,
        f"in namespace {namespace} this account may not: {'; '.join(map(str, lacks))}",
        "ask whoever runs the cluster for a Role with these; docs/doctor.md shows it whole",
    )


def judge_further(lacks: Sequence[Lack], namespace: str) -> Finding:
    if not lacks:
        return Finding.ok(FURTHER_RIGHTS, "this account may see the dashboard and events, and have a pod for these checks")
    return Finding.warning(
        FURTHER_RIGHTS,
        f"in namespace {namespace} this account may not: {'; '.join(map(str, lacks))}",
        "jobs run without them; they serve the dashboard (services/proxy, secrets), reasons of a wait (events) and these checks (pods)",
    )
