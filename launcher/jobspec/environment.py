"""Which environment variables a job's processes have, and by which way each comes there. Pure: environments and a configuration in, data out.

| variables | which | in the record | how they come to the workers |
|---|---|---|---|
| of the job | those of `environment`, and those of the command that EVERYWHERE and HERE list | yes | with the spec |
| secrets | those of `environment` that are references | the reference alone | from the controller, by call |
| of the run store | STORE | no | from the controller, by call |
| of the login | LOGIN; on this machine alone | no | from the controller, by call |
| of the process | PROCESS | no | from whoever started Ray |

On this machine the local Ray is started with PROCESS and nothing else, because its starter is some earlier command. On a cluster Ray has
what its image, its pods or its administrator gave it, and keeps that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from launcher.config.environment import GROUP, holds_password, looks_secret, matches, reserved
from launcher.config.schema import JobConfig, LocalConfig
from launcher.core.errors import ConfigError
from launcher.record.variables import SecretReference

EVERYWHERE = (
    *("NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "CUDA_LAUNCH_BLOCKING", "TOKENIZERS_PARALLELISM"),
    *("TORCH_LOGS", "TORCH_CPP_LOG_LEVEL", "TORCH_SHOW_CPP_STACKTRACES", "TORCH_DISTRIBUTED_DEBUG"),
)
"""Go with a job without being named: switches for finding a fault, which mean the same on every machine."""
HERE = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *(
        "TORCH_HOME",
        "TORCH_EXTENSIONS_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "NLTK_DATA",
        "SCIKIT_LEARN_DATA",
        "MPLCONFIGDIR",
    ),
    *("OMP_*", "MKL_*", "KMP_*", "OPENBLAS_NUM_THREADS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("CUDA_*", "NCCL_*", "GLOO_*", "TZ"),
)
"""Patterns. These go with a job of this machine too: paths, threads and networks, which are others on a cluster."""
LOGIN = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LANGUAGE", "LC_*", "XDG_*", "VIRTUAL_ENV", "CONDA_*", "KRB5*"),
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
"""Patterns: where a person works on this machine, and how the network is reached from it. An address of a proxy may hold a password."""
PROCESS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "VIRTUAL_ENV", "LD_*", "DYLD_*", "PYTHON*", "MALLOC_*", "GLIBC_TUNABLES"),
    *("RAY_*", "LAUNCHER_*", "*_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
)
"""Patterns: what the local Ray needs to start, to count GPUs, and to start its workers."""
STORE = ("AWS_*", "GOOGLE_*", "AZURE_*")
"""Patterns: how object stores are found and opened."""
SESSION = (
    *("TERM", "COLORTERM", "TERM_*", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR*", "EDITOR", "VISUAL", "PAGER", "DISPLAY"),
    *("WAYLAND_DISPLAY", "SSH_*", "TMUX*", "PWD", "OLDPWD", "SHLVL", "CI"),
)
"""Patterns: of the terminal that a command is typed in. A job has none, so nobody is told that they do not go along."""
_SHOWN = 60
"""Characters of a value that are shown to a person."""


def with_variables(config: JobConfig, command: Mapping[str, str]) -> JobConfig:
    """The configuration with the value of each variable, as it is recorded. `command`: the environment of the command that submits.

    Raises ConfigError for a variable that is to have the command's value where the command has none, and for a value that cannot be
    recorded.
    """
    named = with_named_variables(config, command).environment
    unnamed = {name: command[name] for name in _listed(config, command) if name not in named}
    return replace(config, environment={**unnamed, **named})


def with_named_variables(config: JobConfig, command: Mapping[str, str]) -> JobConfig:
    """The same without those that are not named: as a resume has it, whose record has them already. Raises ConfigError."""
    return replace(config, environment={name: _value(name, given, command) for name, given in config.environment.items()})


def variables(config: JobConfig) -> dict[str, str | SecretReference]:
    """The variables of a job, once their values are known."""
    return {name: value for name, value in config.environment.items() if value is not None}


def recorded(config: JobConfig) -> dict[str, str]:
    """The variables of a job that have their value in the record."""
    return {name: value for name, value in config.environment.items() if isinstance(value, str)}


def references(config: JobConfig) -> dict[str, str]:
    """The variables of a job that have none there -> where the value is."""
    return {name: value.secret for name, value in config.environment.items() if isinstance(value, SecretReference)}


def secrets(config: JobConfig, controller: Mapping[str, str]) -> dict[str, str]:
    """The values of the references. `controller`: the environment that the controller was started in. Raises ConfigError for one that it lacks.

    What a Secret of Kubernetes holds, the backend has put there under the variable's own name.
    """
    found = {}
    for name, reference in references(config).items():
        source = name if "/" in reference else reference
        if source not in controller:
            raise ConfigError(
                "a secret of the job is not where the controller starts",
                where=f"{GROUP}.{name}.secret",
                given=f"{reference}, and no variable {source} there",
                expected="on this machine: a variable of the command; on a Ray cluster: one of its head; "
                "on Kubernetes: a key of backend.secret, or SECRET/KEY",
                next=f"set {source} there, and try again",
            )
        found[name] = controller[source]
    return found


def refuse_kubernetes_secrets(config: JobConfig) -> None:
    """Raises ConfigError for a reference to a Secret of Kubernetes, where there is no Kubernetes."""
    for name, reference in references(config).items():
        if "/" in reference:
            raise ConfigError(
                "this job does not run on Kubernetes, which alone has such a Secret",
                where=f"{GROUP}.{name}.secret",
                given=f"{reference}, with backend={config.backend.name}",
                expected=f"the name of a variable in the environment that the controller starts in, such as {name}",
            )


def handed_over(config: JobConfig, controller: Mapping[str, str]) -> dict[str, str]:
    """What a controller gives its workers by call, so that it is in no record. Raises ConfigError for a secret that is not there."""
    patterns = (*LOGIN, *STORE) if isinstance(config.backend, LocalConfig) else STORE
    own = {name: value for name, value in controller.items() if matches(name, patterns) and name not in config.environment}
    return {**own, **secrets(config, controller)}


def of_local_ray(command: Mapping[str, str]) -> dict[str, str]:
    """What the Ray of this machine is started with. `command`: the environment of the command that starts it."""
    return {name: value for name, value in command.items() if matches(name, PROCESS)}


def left_behind(read: Collection[str], config: JobConfig, command: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that the job's code reads, that the command has, and that the job will not have.

    `read`: names that the code asks for.
    """
    there = (*LOGIN, *PROCESS, *STORE, *SESSION)
    return [
        f"the code reads {name}, which is set here and does not go with the job: {_way_to_give(name)}"
        for name in sorted(read)
        if name in command and name not in config.environment and not matches(name, there) and not reserved(name)
    ]


def differences(config: JobConfig, command: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that a resumed job keeps although the command has another value. `config`: as it is resumed."""
    for name, kept in config.environment.items():
        if isinstance(kept, str) and name in command and command[name] != kept:
            yield f"the run keeps {name}={shown(kept)}; this command has {shown(command[name])}: {GROUP}.{name}=null takes it over"
    for name in _listed(config, command):
        if name not in config.environment:
            yield f"the run goes on without {name}, which this command has: {GROUP}.{name}=null takes it over"


def shown(value: str | SecretReference | None) -> str:
    """A variable's value on one line, shortened, for a person; of a secret where it is."""
    if isinstance(value, SecretReference):
        return f"(secret {value.secret})"
    if value is None:
        return "(the command's)"
    if holds_password(value):
        return "(an address with a password in it)"
    text = value if value.isprintable() and value and value == value.strip() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(value)} characters)"


def _listed(config: JobConfig, command: Mapping[str, str]) -> list[str]:
    """The variables of the command that go with a job unnamed."""
    listed = (*EVERYWHERE, *HERE) if isinstance(config.backend, LocalConfig) else EVERYWHERE
    return [name for name in sorted(command) if matches(name, listed) and not reserved(name) and not looks_secret(name)]


def _value(name: str, given: str | SecretReference | None, command: Mapping[str, str]) -> str | SecretReference:
    if given is not None:
        return given
    if name not in command:
        raise ConfigError(
            "the command has no such variable, whose value the job is to have",
            where=f"{GROUP}.{name}",
            given="null",
            expected=f"{name} in the environment of this command, or its value: {GROUP}.{name}=VALUE",
        )
    return command[name]


def _way_to_give(name: str) -> str:
    if looks_secret(name):
        return f"{GROUP}.{name}.secret={name} gives it without recording it"
    return f"{GROUP}.{name}=null gives the job the value that it has here"
