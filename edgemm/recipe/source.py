"""Reads YAML and remembers where everything is: an error about a field names its line and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edgemm.errors import RecipeError, did_you_mean

Loc = tuple[str | int, ...]
"""A path into a recipe: `("inputs", "image", "shape", 1)`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column in a file, both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A key that a mapping has twice: its path, and both places."""

    loc: Loc
    first: Place
    again: Place


@dataclass(frozen=True, slots=True)
class RecipeText:
    """A recipe as it was written.

    Attributes:
        origin: Name of the file, as the user gave it.
        fields: What the YAML says.
        keys: Path -> where the key is; of list items, where the item begins.
        values: Path -> where the value begins.
        duplicates: Keys that occur twice.
    """

    origin: str
    fields: dict[str, Any]
    keys: Mapping[Loc, Place] = field(default_factory=dict)
    values: Mapping[Loc, Place] = field(default_factory=dict)
    duplicates: tuple[Duplicate, ...] = ()

    def place(self, loc: Loc, *, key: bool = False) -> Place | None:
        """Returns where a field is, of its key or its value; of what is not there, where its section is."""
        for end in range(len(loc), -1, -1):
            found = (self.keys if key else self.values).get(loc[:end])
            if found is not None:
                return found
            key = True  # what lacks something is named by its key
        return None


def read_text(path: Path) -> RecipeText:
    """Returns a recipe file's content, with the place of every key and value. Runs no code.

    Raises:
        RecipeError: The file cannot be read, or is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not a text in UTF-8.", hint="a recipe is a YAML file; a model goes to `edgemm recipe init`"
        ) from error
    except OSError as error:
        raise _not_read(path, error) from error
    return parse_text(text, str(path))


def _not_read(path: Path, error: OSError) -> RecipeError:
    if path.is_dir():
        return RecipeError(f"{path}: is a folder.", hint=f"name a recipe in it; `edgemm recipe list {path}`")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return RecipeError(f"{path}: no such file.", hint=_meant(path))
    return RecipeError(f"{path}: cannot be read: {error.strerror or error}.", hint="see to its permissions")


def _meant(path: Path) -> str:
    """Returns a hint for a recipe that is not there: `NAME.yaml` here or in `recipes`, or a name that is close."""
    file = path if path.suffix in (".yaml", ".yml") else Path(f"{path}.yaml")
    for found in (file, Path("recipes", file.name)):
        if found.is_file():
            return f"did you mean '{found}'?"
    near = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return did_you_mean(str(file), near, "`edgemm recipe list FOLDER` shows the recipes in a folder")


def parse_text(text: str, origin: str) -> RecipeText:
    """Returns the same of a text; `origin` names it.

    Raises:
        RecipeError: It is no YAML mapping.
    """
    try:
        root, duplicates, fields = _parse(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark is not None else origin
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RecipeError(
            f"{where}: no readable YAML: {what}.", hint="a recipe is a YAML mapping of sections"
        ) from error
    if root is None or not isinstance(fields, dict):
        raise RecipeError(
            f"{origin}: got {_told(fields)}, expected a mapping of sections.",
            hint="start with `model: {path: model.pt2}`",
        )
    keys: dict[Loc, Place] = {}
    values: dict[Loc, Place] = {}
    _note_places(root, (), keys, values, ())
    return RecipeText(origin, fields, keys, values, duplicates)


def _parse(text: str) -> tuple[yaml.Node | None, tuple[Duplicate, ...], Any]:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        duplicates = tuple(_duplicates(root, (), ()))
        # Constructing resolves `<<` in the nodes, too.
        return root, duplicates, loader.construct_document(root) if root is not None else None
    finally:
        loader.dispose()


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _duplicates(node: yaml.Node | None, loc: Loc, inside: tuple[yaml.Node, ...]) -> Iterator[Duplicate]:
    if node is None or any(node is outer for outer in inside):
        return
    inside = (*inside, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, (*loc, index), inside)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], Place] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name, place = (key.tag, key.value), _place(key)
                if name in seen:
                    yield Duplicate((*loc, key.value), seen[name], place)
                seen.setdefault(name, place)
            yield from _duplicates(value, (*loc, str(key.value)), inside)


def _note_places(
    node: yaml.Node, loc: Loc, keys: dict[Loc, Place], values: dict[Loc, Place], inside: tuple[yaml.Node, ...]
) -> None:
    if any(node is outer for outer in inside):
        return
    inside = (*inside, node)
    values[loc] = _place(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            keys[(*loc, index)] = _place(item)
            _note_places(item, (*loc, index), keys, values, inside)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                keys[(*loc, key.value)] = _place(key)
                _note_places(value, (*loc, key.value), keys, values, inside)


def _told(fields: object) -> str:
    return "nothing" if fields is None else "a list" if isinstance(fields, list) else f"'{fields!s:.40}'"
