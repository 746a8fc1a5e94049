"""What the schema says about each key, and the files that say the same: those under configs/ and the tables of docs/configuration.md.

`python -m launcher.config.describe` writes them anew, in a checkout. What stands before the keys in configs/train.yaml (the defaults
list) and around the tables in docs/configuration.md is written by hand and stays.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

import yaml  # type: ignore[import-untyped]

from launcher.config.keys import bound_of, hints_of
from launcher.config.parse import WORDS
from launcher.config.schema import COMPONENTS, JobConfig
from launcher.config.shipped import shipped_folder
from launcher.core.errors import ConfigError
from launcher.record.desired import WorkerBounds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SHIPPED = {"runs": "${oc.env:LAUNCHER_RUNS,./runs}", "workers": "1", "trainer.epochs": "8"}
"""What the shipped files set where the schema has no default of its own: a person has to say how many workers there are and how long the
training is, and only a file can look into the environment."""
BEGIN = "<!-- From here on written by `python -m launcher.config.describe`. -->"
END = "<!-- Up to here. -->"
WIDTH = 140


@dataclass(frozen=True)
class Key:
    name: str
    """Without the group."""
    type: str
    """In words, with the bound of a number."""
    default: str
    """As YAML writes it; ??? for a key that has to be set."""
    text: str
    """On one line."""


def text_of(kind: type) -> str:
    """The docstring of a dataclass, on one line."""
    return " ".join((kind.__doc__ or "").split())


def keys_of(kind: type[DataclassInstance], group: str = "") -> list[Key]:
    """The keys of a dataclass of the schema, without the groups in it. `group`: its name in the configuration, "" for JobConfig."""
    texts, hints = _field_texts(kind), hints_of(kind)
    found = []
    for item in fields(kind):
        if _groups_in(hints[item.name]):
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        shown = SHIPPED.get(f"{group}.{item.name}" if group else item.name, "???" if default is MISSING else as_yaml(default))
        found.append(Key(item.name, _in_words(hints[item.name]), shown, texts.get(item.name, "")))
    return found


def documents(root: Path) -> dict[Path, str]:
    """Each file under `root` that repeats the schema, with the text that it has to have."""
    configs, page = root / "configs", root / "docs" / "configuration.md"
    written = {configs / "train.yaml": _train_file(configs / "train.yaml"), page: _page(page)}
    for group, kinds in _groups().items():
        for file in sorted((configs / group).glob("*.yaml")):
            kind = next(kind for kind in kinds if len(kinds) == 1 or _backend_name(kind) == file.stem)
            written[file] = _group_file(kind, group, choice=file.stem)
    return written


def _groups() -> dict[str, list[type[DataclassInstance]]]:
    """The groups of the configuration that have keys of their own, each with its dataclass; several where the choices differ in keys."""
    return {name: kinds for name, hint in hints_of(JobConfig).items() if name not in COMPONENTS and (kinds := _groups_in(hint))}


def _groups_in(hint: object) -> list[type[DataclassInstance]]:
    return [
        option for option in (hint, *get_args(hint)) if isinstance(option, type) and is_dataclass(option) and option is not WorkerBounds
    ]


def _field_texts(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line. Python keeps none of them, so the source is read."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _in_words(hint: object) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f"{_in_words(next(option for option in options if option is not type(None)))}, or null"
    if origin is Annotated and (bound := bound_of(hint)) is not None:
        return f"{_in_words(options[0])}, {bound.words}"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in options)
    if hint is WorkerBounds:
        return "`2` or `1..4`"
    return next(words for kind, words in WORDS.items() if kind is (origin or hint))


def as_yaml(value: object) -> str:
    """The value on one line of YAML: a text without quotes where it is read back as it is, anything else as JSON."""
    if isinstance(value, str) and _reads_back(value):
        return value
    return json.dumps(value)


def _reads_back(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return False  # Hydra reads more texts as numbers than YAML does: 1e3
    try:
        return bool(yaml.safe_load(f"key: {text}\n") == {"key": text})
    except yaml.YAMLError:
        return False


def _backend_name(kind: type[DataclassInstance]) -> str:
    return str(get_args(hints_of(kind)["name"])[0])


# YAML


def _train_file(file: Path) -> str:
    by_hand, _, _ = file.read_text().partition("\n\n")
    return f"{by_hand}\n\n{_yaml_lines(keys_of(JobConfig))}"


def _group_file(kind: type[DataclassInstance], group: str, *, choice: str) -> str:
    keys = [Key(key.name, key.type, choice, key.text) if key.name == "name" else key for key in keys_of(kind, group)]
    return f"{_comment(text_of(kind))}\n{_yaml_lines(keys)}"


def _yaml_lines(keys: list[Key]) -> str:
    return "".join(f"{_comment(key.text)}{key.name}: {key.default}\n" for key in keys)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False))


# Markdown


def _page(page: Path) -> str:
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError("the place of the tables is not marked", where=str(page), expected=f"the lines {BEGIN} and {END}")
    return "\n\n".join([f"{before}{BEGIN}", *_tables(), f"{END}{after}"])


def _tables() -> Iterator[str]:
    yield _table(keys_of(JobConfig), "")
    for group, kinds in _groups().items():
        if len(kinds) == 1:
            yield f"### `{group}`\n\n{text_of(kinds[0])}\n\n{_table(keys_of(kinds[0], group), group)}"
            continue
        choices = ", ".join(f"`{_backend_name(kind)}`" for kind in kinds)
        name = Key("name", choices, _backend_name(kinds[0]), _field_texts(JobConfig)[group])
        yield f"### `{group}`\n\n{_table([name], group)}"
        for kind in kinds:
            if keys := [key for key in keys_of(kind, group) if key.name != "name"]:
                yield f"### `{group}={_backend_name(kind)}`\n\n{text_of(kind)}\n\n{_table(keys, group)}"


def _table(keys: list[Key], group: str) -> str:
    rows = [f"| `{f'{group}.' if group else ''}{key.name}` | {key.type} | {_default_cell(key)} | {_linked(key.text)} |" for key in keys]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _default_cell(key: Key) -> str:
    return "has to be set" if key.default == "???" else f"`{key.default}`"


def _linked(text: str) -> str:
    """`docs/kubernetes.md#the-image` as a link from the page, which lies in docs/ itself."""
    return re.sub(r"docs/([\w-]+\.md)#([\w-]+)", _link, text)


def _link(found: re.Match[str]) -> str:
    page, part = found[1], found[2]
    return f"[below](#{part})" if page == "configuration.md" else f"[{page}]({page}#{part})"


def main() -> None:
    for file, text in documents(shipped_folder()).items():
        if file.read_text() != text:
            file.write_text(text)
            print(file)


if __name__ == "__main__":
    main()
