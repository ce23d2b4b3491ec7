"""Which fields of a recipe are paths: they are relative to the recipe's folder, and must exist."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgemm.errors import did_you_mean
from edgemm.preprocess.registry import file_options
from edgemm.recipe.problems import Problem, dotted
from edgemm.recipe.source import Loc, RecipeText

FILES: tuple[tuple[str, str], ...] = (
    ("model", "path"),
    ("model", "factory"),
    ("data", "calib"),
    ("data", "eval"),
    ("quantize", "plan"),
    ("evaluate", "metric"),
)
"""Fields that are a path, `FILE.py:NAME`, or a word that is neither."""

_WORDS = (("evaluate", "metric"),)
"""Of these, those that are a path only as `FILE.py:NAME`."""


def path_in(loc: Loc, value: Any) -> tuple[str, str] | None:
    """Returns the file that a field names and what follows it (`:NAME`), or None where it names none."""
    if not isinstance(value, str) or not value:
        return None
    if len(loc) == 3 and (loc[0], loc[2]) == ("inputs", "blank"):
        return (value, "") if value.endswith(".npy") else None
    if len(loc) == 3 and loc[:2] == ("missing", "heads"):
        return value, ""
    if len(loc) == 6 and (loc[0], loc[2]) == ("inputs", "preprocess"):
        return value, ""
    if loc not in FILES:
        return None
    file, colon, name = value.partition(":")
    if colon and not file.endswith(".py"):
        return None  # package.module:FUNC
    if loc in _WORDS and not colon:
        return None
    return file, f"{colon}{name}"


def named_files(fields: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Yields every field that names a file, with that file as it is written."""
    for loc, value in _candidates(fields):
        found = path_in(loc, value)
        if found is not None:
            yield loc, found[0]


def resolve(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the fields with relative paths put below `folder`; absolute ones stay."""
    return _moved(fields, lambda name: str(folder / name))


def relative_to(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the fields with paths as they are called from `folder`, as `called_from` has them."""
    return _moved(fields, lambda name: called_from(Path(name), folder))


def called_from(path: Path, folder: Path) -> str:
    """Returns a path relative to `folder`; the absolute one where both have nothing but the root in common."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    near = len(os.path.commonpath([path, folder])) > 1  # else the way up is as long as the whole path
    return os.path.relpath(path, folder) if near else str(path)


def _moved(fields: Mapping[str, Any], moved: Callable[[str], str]) -> dict[str, Any]:
    result = _with_blanks(fields)
    for loc, value in list(_candidates(result)):
        found = path_in(loc, value)
        if found is not None:
            result = _replaced(result, loc, f"{moved(found[0])}{found[1]}")
    return result


def missing_files(text: RecipeText, folder: Path) -> list[Problem]:
    """Returns a problem for every file that a recipe names and that is not there."""
    result = []
    for loc, name in named_files(_with_blanks(text.fields)):
        path = folder / name
        if path.exists():
            continue
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near, _how_to_make(path))
        result.append(Problem(text.origin, dotted(loc), f"there is no file '{name}'", hint, text.place(loc)))
    return result


def _how_to_make(path: Path) -> str:
    """Returns a hint for a file that is not there; what this project's own recipes name is made by a program."""
    own = re.search(r"\.cache/edgemm/fixtures/(\w+)/", path.as_posix())
    if own is not None:
        return f"`python -m recipes.make {own[1]}` makes it, in the folder that has `recipes` in it"
    return "make it, or name another; paths are relative to the recipe"


def _candidates(fields: Mapping[str, Any]) -> Iterator[tuple[Loc, Any]]:
    for section, key in FILES:
        part = fields.get(section)
        if isinstance(part, Mapping) and key in part:
            yield (section, key), part[key]
    missing = fields.get("missing")
    heads = missing.get("heads") if isinstance(missing, Mapping) else None
    for name, value in heads.items() if isinstance(heads, Mapping) else ():
        yield ("missing", "heads", name), value
    inputs = fields.get("inputs")
    for name, part in inputs.items() if isinstance(inputs, Mapping) else ():
        if isinstance(part, Mapping) and "blank" in part:
            yield ("inputs", name, "blank"), part["blank"]
        steps = part.get("preprocess") if isinstance(part, Mapping) else None
        for number, item in enumerate(steps if isinstance(steps, (list, tuple)) else ()):
            for step, options in item.items() if isinstance(item, Mapping) else ():
                named = file_options(str(step)) if isinstance(options, Mapping) else frozenset()
                for option in named & options.keys():
                    yield ("inputs", name, "preprocess", number, step, option), options[option]


def _with_blanks(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields with `blank: {file: quiet.npy}` written as `blank: quiet.npy`."""
    result = dict(fields)
    for loc, value in list(_candidates(fields)):
        if loc[-1] == "blank" and isinstance(value, Mapping) and isinstance(value.get("file"), str):
            result = _replaced(result, loc, value["file"])
    return result


def _replaced(fields: Any, loc: Loc, value: Any) -> Any:
    """Returns a copy of nested mappings and lists with one value replaced."""
    if not loc:
        return value
    key, rest = loc[0], loc[1:]
    if isinstance(key, int):
        return [_replaced(part, rest, value) if i == key else part for i, part in enumerate(fields)]
    return {**fields, key: _replaced(fields[key], rest, value)}
