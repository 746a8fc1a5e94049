"""From a configuration to a run that exists and is started.

Order matters: everything that can be refused is refused before the first write, the name is created last of the
writes because it is what makes the run exist, and what failed is taken away again.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.backends.base import Backend, Placement, open_backend
from launcher.checkpoint.catalog import list_checkpoints
from launcher.config.parse import dump_config
from launcher.config.schema import JobConfig, KubeRayConfig
from launcher.core.clock import Clock, SystemClock, timestamp
from launcher.core.errors import CapacityError, ConfigError, InfrastructureError, NameTaken, RunNotFound, StoreUnavailable
from launcher.core.store import is_local, local_path, open_store
from launcher.core.types import JsonObject, RunId
from launcher.jobs.packing import archive_code, code_ref, read_packages
from launcher.jobs.refs import NAMES, NameRecord, RunRef, absolute_runs, find, free_name, person, read_name, take_name
from launcher.jobspec.environment import left_behind, with_variables
from launcher.jobspec.job import CodeRef, JobSpec
from launcher.jobspec.packages import Requirements, requirements_key
from launcher.jobspec.versions import installed_versions, refuse_image
from launcher.record.desired import Desired
from launcher.record.encoding import encode
from launcher.record.lineage import lineage
from launcher.record.run_store import RunStore

if TYPE_CHECKING:
    pass

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass(frozen=True)
class Plan:
    """What a submit would send, and whether it fits now."""

    spec: JobSpec
    placement: Placement
    code_bytes: int
    code_files: int
    left_behind: tuple[str, ...]
    """A sentence for each environment variable that the code reads, that the command has, and that the job would not have."""

    def to_json(self) -> JsonObject:
        """As `launch plan -o json` prints it."""
        config, place = self.spec.config, self.placement
        return {
            "name": config.name,
            "runs": config.runs,
            "backend": config.backend.name,
            "fits": place.fits,
            "reason": place.reason,
            "where": place.where,
            "device": place.device,
            "gpu_per_worker": place.gpu_per_worker,
            "workers": {"min": config.workers.min, "max": config.workers.max, "target": config.workers.target, "now": place.workers},
            "shards": config.shards,
            "fused_shards": config.fused_shards,
            "code": {
                "digest": self.spec.code.digest,
                "bytes": self.code_bytes,
                "files": self.code_files,
                "git_commit": self.spec.code.git_commit,
                "git_dirty": self.spec.code.git_dirty,
            },
            "left_behind": list(self.left_behind),
            "versions": dict(self.spec.versions),
            "config": dump_config(config),
        }


def plan(config: JobConfig, *, folder: Path) -> Plan:
    """What `submit` would do with the same words; touches nothing. Raises what submit would raise, but for a lack of room."""
    config = _resolved(config)
    packages = read_packages(config, folder)
    spec = _spec(config, _run_id(config), _CodeUnknown, SystemClock())
    placement = _place_or_reason(open_backend(config.backend.name), spec)
    refuse_versions(config)
    code = archive_code(config, folder)
    _refuse_taken(config)
    ref = code_ref(code, packages)
    # the id in the spec is made up: a submit makes up another
    left = tuple(left_behind(code.variables, config, os.environ))
    return Plan(replace(spec, config=config, code=ref), placement, len(code.data), len(code.files), left)


def submit(config: JobConfig, *, folder: Path, clock: Clock | None = None, tell: Callable[[str], object] = lambda sentence: None) -> RunRef:
    """Record a run and start it; returns as soon as it is started. `folder` holds the user's code.

    `tell` is called with what the person should know of it, a sentence at a time.

    Raises CapacityError or BackendUnavailable where it cannot run, ConfigError for code that does not hold what the
    configuration names, NameTaken, StoreUnavailable; then nothing of the run remains.
    """
    clock = clock or SystemClock()
    config = _resolved(config)
    packages = read_packages(config, folder)
    run_id = _run_id(config)
    backend = open_backend(config.backend.name)
    placement = backend.place(_spec(config, run_id, _CodeUnknown, clock))
    if not placement.fits:
        raise CapacityError(
            "the job does not fit",
            where=placement.where,
            given=f"workers={config.workers.min}..{config.workers.max}, gpu={config.gpu if config.gpu is not None else 'auto'}",
            expected=placement.reason,
            next="`launch plan` with the same words shows what would fit",
        )
    refuse_versions(config)
    code = archive_code(config, folder)
    _refuse_taken(config)
    for sentence in left_behind(code.variables, config, os.environ):
        tell(sentence)
    spec = _spec(config, run_id, code_ref(code, packages), clock)
    fresh = is_local(config.runs) and not local_path(config.runs).exists()
    run = RunStore(open_store(config.runs, create=True), run_id)
    named = False
    try:
        _write(run, spec, code.data, packages)
        backend.announce(run)
        named = take_name(run.store, NameRecord(spec.name, run_id, spec.submitted_at))
        if not named:
            raise _taken(spec.name, config.runs)
        backend.launch(spec, run)
    except BaseException:
        _discard(run, spec.name if named else None, whole=fresh)
        raise
    return RunRef(config.runs, run_id, spec.name)


_CodeUnknown = CodeRef(digest="")


def refuse_versions(config: JobConfig) -> None:
    """Raises ConfigError where the job's image is known not to fit this machine; the controller checks an image that is not known yet."""
    if isinstance(config.backend, KubeRayConfig):
        refuse_image(open_store(config.runs), config.backend.image, installed_versions())


def _resolved(config: JobConfig) -> JobConfig:
    """The same configuration where workers elsewhere read it: absolute places, and the values of environment variables."""
    runs = absolute_runs(config.runs)
    init_from = config.checkpoint.init_from
    if init_from is not None:
        init_from = _init_from(init_from, runs)
    placed = replace(config, runs=runs, checkpoint=replace(config.checkpoint, init_from=init_from))
    return with_variables(placed, os.environ)


def _init_from(word: str, runs: str) -> str:
    elsewhere, slash, name = word.rstrip("/").rpartition("/")
    try:
        ref = find(name, elsewhere if slash else runs)
    except RunNotFound as error:
        raise ConfigError(error.what, where="checkpoint.init_from", given=word, expected=error.expected, next=error.next) from error
    run = ref.open()
    if not list_checkpoints(run, lineage(run.terms()[1])):
        raise ConfigError(
            "the run to start from has no checkpoint", where="checkpoint.init_from", given=word, expected="a run that saved at least one"
        )
    return ref.uri


def _run_id(config: JobConfig) -> RunId:
    """Names what a cluster has of the run as well: a DNS label that begins with a letter, of at most 47 characters."""
    module = config.model.target.split(".")[-2]
    stem = re.sub(r"[^a-z0-9]+", "-", module.lower()).strip("-")
    if not stem[:1].isalpha():
        stem = f"run-{stem}"
    stem = stem[:40].strip("-")
    return RunId(f"{stem}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(6))}")


def _spec(config: JobConfig, run_id: RunId, code: CodeRef, clock: Clock) -> JobSpec:
    name = config.name or run_id
    return JobSpec(
        run_id=run_id,
        name=name,
        config=replace(config, name=name),
        code=code,
        versions=installed_versions(),
        submitted_at=timestamp(clock.now()),
    )


def _place_or_reason(backend: Backend, spec: JobSpec) -> Placement:
    try:
        return backend.place(spec)
    except InfrastructureError as error:
        reason = "; ".join(part for part in (error.what, error.given, error.expected, error.next) if part)
        return Placement(
            fits=False,
            workers=0,
            device=spec.config.resources.device,
            gpu_per_worker=spec.config.gpu or 0,
            where=error.where,
            reason=reason,
        )


def _refuse_taken(config: JobConfig) -> None:
    if config.name is not None and read_name(open_store(config.runs), config.name) is not None:
        raise _taken(config.name, config.runs)


def _taken(name: str, runs: str) -> NameTaken:
    return NameTaken(
        "another run has this name",
        where=f"name, in {runs}",
        given=name,
        expected="a name that is free; without one the run is named by its id",
        next=f"`launch status {name}` shows that run, `launch resume {name}` goes on with it",
    )


def _write(run: RunStore, spec: JobSpec, code: bytes, packages: Requirements | None) -> None:
    from launcher.jobspec.code import code_key

    run.store.put(run.key(code_key(spec.code.digest)), code)
    if packages is not None:
        run.store.put(run.key(requirements_key(packages.digest)), packages.data)
    run.store.put(run.key(f"spec-{spec.number}.json"), encode(spec.to_json()))
    run.create_desired(
        Desired(revision=1, state="running", spec=spec.number, workers=spec.config.workers, by=person(), at=spec.submitted_at)
    )


def _discard(run: RunStore, name: str | None, *, whole: bool) -> None:
    """Take away what was written. `whole`: the folder of the runs itself was made for this run."""
    with suppress(StoreUnavailable):  # the error that led here is the one to tell
        if name is not None:
            free_name(run.store, name)
        run.store.delete([item.key for item in run.store.list(run.run_id)])
    if is_local(run.store.uri):
        place = local_path(run.store.uri)
        _remove_empty(place / run.run_id)
        if whole:
            _remove_empty(place / NAMES)
            _remove_empty(place)


def _remove_empty(folder: Path) -> None:
    """Stores have no folders, but a local one leaves them behind."""
    nested = [path for path in folder.rglob("*") if path.is_dir()] if folder.is_dir() else []
    for path in [*sorted(nested, reverse=True), folder]:
        with suppress(OSError):
            path.rmdir()
