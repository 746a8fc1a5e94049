"""Which environment variables a job may have: their names, and values that may be recorded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from launcher.core.errors import ConfigError
from launcher.record.variables import SecretReference

GROUP = "environment"
LIMIT_BYTES = 128 * 1024 - 1
"""For the names and values that are recorded, together. Linux starts no program with a longer variable."""
_AT_START = "it is read when a process starts, and Ray has started the workers' processes by then"
_MEMBERSHIP = "launcher decides which workers train together, and changes it while they run"
RESERVED: Mapping[str, str] = {
    "RAY_*": "it is Ray's own",
    "LAUNCHER_*": "it is launcher's own",
    "KUBERNETES_*": "Kubernetes sets it",
    **dict.fromkeys(("AWS_*", "GOOGLE_*", "AZURE_*"), "it opens the run store; the controller gives its workers those that it has itself"),
    "*_VISIBLE_DEVICES": "Ray gives each worker its GPUs; `gpu` says how many",
    **dict.fromkeys(("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), _MEMBERSHIP),
    **dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_*"), _MEMBERSHIP),
    **dict.fromkeys(
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS", "TORCH_NCCL_ENABLE_MONITORING"),
        "launcher sets it, so that a group of workers can be left at any time",
    ),
    **dict.fromkeys(("LD_*", "DYLD_*", "PYTHON*", "MALLOC_*", "GLIBC_TUNABLES"), _AT_START),
    **{f"WANDB_{name.upper()}": f"this is tracking.{name}" for name in ("project", "entity", "mode")},
    **dict.fromkeys(("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME"), "the run itself says it"),
}
"""Patterns of names that a job cannot set -> the reason."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET_WORDS = frozenset({"TOKEN", "KEY", "APIKEY", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"})
_PLACE_WORDS = frozenset({"PATH", "FILE", "DIR"})
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def check_environment(environment: Mapping[str, str | SecretReference | None]) -> None:
    """Raises ConfigError for the first variable that no job may have in this way. No value is repeated in it.

    None: a value that is not known yet, because the command has it.
    """
    size_bytes = 0
    for name, value in environment.items():
        where = f"{GROUP}.{name}"
        _check_name(name, where)
        if isinstance(value, SecretReference):
            _check_reference(value.secret, name, where)
            continue
        if looks_secret(name):
            raise _secret("so the name of the variable says", name, where)
        if value is not None:
            _check_value(value, name, where)
            size_bytes += len(f"{name}={value}".encode())
    if size_bytes > LIMIT_BYTES:
        raise ConfigError(
            "the variables are too long to be recorded",
            where=GROUP,
            given=f"{size_bytes} bytes of names and values",
            expected=f"at most {LIMIT_BYTES} bytes",
            next="put what is long into a file, and its path into a variable",
        )


def reserved(name: str) -> str:
    """Why a job cannot have a variable of this name; "" where it can."""
    return next((reason for pattern, reason in RESERVED.items() if fnmatchcase(name, pattern)), "")


def looks_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, as far as a name can tell; HF_TOKEN_PATH holds a path."""
    words = name.upper().split("_")
    return words[-1] not in _PLACE_WORDS and not _SECRET_WORDS.isdisjoint(words)


def holds_password(value: str) -> bool:
    """Whether a value is an address with a password in it."""
    return _PASSWORD_IN_ADDRESS.search(value) is not None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name of a variable fits one of these, as `LC_*` fits LC_ALL."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "this is no name of a variable",
            where=where,
            given=repr(name),
            expected="letters, digits and _, not beginning with a digit, such as DATA_ROOT",
        )
    if reason := reserved(name):
        elsewhere = "set it where Ray is started; on Kubernetes backend.overlay sets it for the pods" if reason is _AT_START else ""
        raise ConfigError("a job cannot set this variable", where=where, given=name, expected=f"another one: {reason}", next=elsewhere)


def _check_value(value: str, name: str, where: str) -> None:
    if "\0" in value:
        raise ConfigError(
            "no variable can hold this value", where=where, given="a text with a character 0 in it", expected="a text without"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "the value cannot be recorded", where=where, given="bytes that are no UTF-8", expected="a text in UTF-8"
        ) from None
    if holds_password(value):
        raise _secret("the value is an address with a password in it", name, where)


def _check_reference(reference: str, name: str, where: str) -> None:
    if "/" not in reference and not _NAME.fullmatch(reference):
        raise ConfigError(
            "this does not say where the secret is",
            where=f"{where}.secret",
            given=repr(reference),
            expected=f"the name of a variable, such as {name}, or SECRET/KEY of a Secret of Kubernetes",
        )


def _secret(why: str, name: str, where: str) -> ConfigError:
    return ConfigError(
        f"a secret would be recorded: {why}",
        where=where,
        given="a value",
        expected=f"where the value is: {where}.secret=",
        next=f"{where}.secret={name} takes it from the environment that the controller starts in, on Kubernetes "
        f"{where}.secret=SECRET/KEY from a Secret",
    )
