"""Where configurations are searched, and what Hydra knows of them: groups, choices, keys, files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.diagnosis import shown
from launcher.config.overrides import has_superfluous_sign, normalise, open_mappings, read_word, settle_length
from launcher.config.parse import is_mapping
from launcher.config.shipped import shipped_folder

COMPOSITION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ImportError,
)
"""What Hydra raises for wrong configurations; its own kinds are the smaller part."""

_shipped: ContextVar[Path | None] = ContextVar("shipped", default=None)


class ShippedConfigs(SearchPathPlugin):
    """Puts launcher's own configurations behind the user's, within `shipped_on_path` alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folder = _shipped.get()
        if folder is not None and all(part.path != str(folder) for part in search_path.get_path()):
            search_path.append("launcher", str(folder))


@contextlib.contextmanager
def shipped_on_path() -> Iterator[None]:
    """Within it, any composition in this context searches launcher's own configurations last."""
    Plugins.instance().register(ShippedConfigs)
    token = _shipped.set(shipped_folder() / "configs")
    try:
        yield
    finally:
        _shipped.reset(token)


def main_folder(folder: Path) -> Path:
    """The folder of configurations that is searched first: configs/ under `folder` where there is one, else launcher's own."""
    own = folder.absolute() / "configs"
    return own if own.is_dir() else shipped_folder() / "configs"


class HydraSources:
    """What Hydra can say of one composition, also where the composition itself fails: the `diagnosis.Sources` of that composition.

    `folder`: where the command was typed. `main`, `added`: the folders of --config-path and --config-dir, absolute. `name`: of the
    configuration at the top, such as train.
    """

    def __init__(self, *, folder: Path, main: Path | None, added: Path | None, name: str) -> None:
        with shipped_on_path():
            path = create_config_search_path(str(main or main_folder(folder)))
        if added is not None:
            path.prepend("command-line", f"file://{added}", SearchPathQuery(provider="schema"))
        self.folder = folder.absolute()
        self.name = name
        self.loader = ConfigLoaderImpl(path)
        self.overrides: list[str] = []

    def prepare(self, overrides: Sequence[str]) -> list[str]:
        """The overrides as Hydra wants them (launcher.config.overrides), which later questions refer to."""
        self.overrides = list(overrides)
        if any(has_superfluous_sign(override) for override in overrides):
            listed = self._listed_groups()
            self.overrides = normalise(overrides, groups=listed, has_key=lambda key: False)
            if any(has_superfluous_sign(override) for override in self.overrides):
                self.overrides = normalise(self.overrides, groups=listed, has_key=self._has_key)
        self.overrides = settle_length(open_mappings(self.overrides, is_mapping))
        return list(self.overrides)

    def folders(self) -> list[str]:
        found = [shown(source.path, self.folder) for source in self.loader.get_sources() if source.scheme() == "file"]
        return list(dict.fromkeys(found))

    @cached_property
    def _groups(self) -> list[str]:
        return self._groups_under("")

    def groups(self) -> list[str]:
        return self._groups

    def _groups_under(self, parent: str) -> list[str]:
        found: list[str] = []
        for name in self._options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if group != "hydra":
                found += [*([group] if self._options(group, ObjectType.CONFIG) else []), *self._groups_under(group)]
        return found

    def choices(self, group: str) -> list[str]:
        return self._options(group, ObjectType.CONFIG)

    def _options(self, group: str, kind: ObjectType) -> list[str]:
        found: list[str] = []
        for source in self.loader.get_sources():
            with contextlib.suppress(*COMPOSITION_ERRORS):
                if source.is_group(group):
                    found += source.list(group, kind)
        return sorted({name for name in found if not name.startswith("_dummy")})

    def keys(self, parent: str) -> list[str]:
        node = self._select(parent)
        return [str(key) for key in node if key != "hydra"] if isinstance(node, DictConfig) else []

    def _has_key(self, key: str) -> bool:
        parent, _, name = key.rpartition(".")
        node = self._select(parent)
        return isinstance(node, DictConfig) and name in node.keys()  # noqa: SIM118 - `in node` is False for a missing value

    def _select(self, key: str) -> object:
        composed = self._composed
        if composed is None or not key:
            return composed
        with contextlib.suppress(OmegaConfBaseException):
            return OmegaConf.select(composed, key)
        return None

    @cached_property
    def _composed(self) -> Container | None:
        for choices in (self._sound_choices(), []):
            with contextlib.suppress(*COMPOSITION_ERRORS):
                return self.loader.load_configuration(self.name, choices, RunMode.RUN, validate_sweep_overrides=False)
        return None

    def _sound_choices(self) -> list[str]:
        """The overrides that choose a group's choice that exists, and hydra.searchpath. With these a composition succeeds when others are wrong."""
        sound = []
        for override in self.overrides:
            word = read_word(override)
            if word is None or word.value is None:
                continue
            if word.key == "hydra.searchpath" or (word.key in self.groups() and word.value in self.choices(word.key)):
                sound.append(override)
        return sound

    def _listed_groups(self) -> set[str]:
        """Groups in the defaults list, also those whose choice is null."""
        plain = [override for override in self._sound_choices() if not has_superfluous_sign(override)]
        with contextlib.suppress(*COMPOSITION_ERRORS):
            return set(self.loader.compute_defaults_list(self.name, plain, RunMode.MULTIRUN).overrides.known_choices)
        return set()

    def file_of(self, key: str) -> str:
        with contextlib.suppress(*COMPOSITION_ERRORS):
            defaults = self.loader.compute_defaults_list(self.name, self._sound_choices(), RunMode.MULTIRUN).defaults
            while key:
                for item in reversed(defaults):
                    if item.config_path and not item.config_path.startswith("hydra/"):
                        found = self._file_with(item.config_path, item.package or "", key)
                        if found:
                            return found
                key = key.rpartition(".")[0]
        return ""

    def file_of_config(self, path: str) -> str:
        """The file of a configuration such as experiment/quick; "" where there is none."""
        with contextlib.suppress(*COMPOSITION_ERRORS):
            loaded = self.loader.repository.load_config(path)
            if loaded is not None:
                return shown(f"{loaded.path.removeprefix('file://')}/{path}.yaml", self.folder)
        return ""

    def file_refused(self) -> tuple[str, Exception] | None:
        """The first file, of those that are searched, that holds what OmegaConf does not take, and what it says of it."""
        for source in self.loader.get_sources():
            files = sorted(Path(source.path).rglob("*.yaml")) if source.scheme() == "file" else []
            for file in files:
                try:
                    OmegaConf.load(file)
                except (OmegaConfBaseException, RecursionError) as error:
                    return shown(file, self.folder), error
                except COMPOSITION_ERRORS:
                    continue  # another kind of fault
        return None

    def file_naming(self, group: str, choice: str) -> str:
        """The file whose defaults list asks for a choice; "" where there is none."""
        chosen = [f"{word.key}/{word.value}" for override in self._sound_choices() if (word := read_word(override))]
        for path in (*chosen, self.name):
            with contextlib.suppress(*COMPOSITION_ERRORS):
                loaded = self.loader.repository.load_config(path)
                for item in (loaded.defaults_list if loaded else None) or []:
                    if str(getattr(item, "group", "") or "").strip("/") == group and getattr(item, "value", None) == choice:
                        return self.file_of_config(path)
        return ""

    def _file_with(self, path: str, package: str, key: str) -> str:
        if package and key != package and not key.startswith(f"{package}."):
            return ""
        loaded = self.loader.repository.load_config(path)
        if loaded is None:
            return ""
        node: object = OmegaConf.to_container(loaded.config, resolve=False)
        for part in (key.removeprefix(package).lstrip(".").split(".")) if key != package else ():
            if not isinstance(node, dict) or part not in node:
                return ""
            node = node[part]
        return self.file_of_config(path)
