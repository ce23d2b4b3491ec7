"""Reads a recipe from YAML and turns pydantic's complaints into one EdgemmError that says where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgemm.errors import RecipeError
from edgemm.recipe.paths import resolve
from edgemm.recipe.problems import Problem, as_error, duplicates_of, in_order, problems_of
from edgemm.recipe.schema import Recipe
from edgemm.recipe.source import RecipeText, read_text


def build_recipe(fields: Mapping[str, Any], *, where: str) -> Recipe:
    """Returns the validated recipe.

    Args:
        fields: Nested dict of sections.
        where: What the fields came from, for the error ("options", or a file name).

    Raises:
        RecipeError: A field is unknown, missing or out of range; the first one is named.
    """
    recipe, problems = judge(RecipeText(where, dict(fields)))
    if recipe is None or problems:
        raise as_error(problems)
    return recipe


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Returns the recipe at `path` with `overrides` (a nested dict) laid over it; relative paths are its own.

    Raises:
        RecipeError: The file is no YAML mapping or fails validation; the message has line and column.
    """
    text = read_text(path)
    recipe, problems = judge(replace(text, fields=resolve(text.fields, path.parent)), overrides)
    if recipe is None or problems:
        raise as_error(problems)
    return recipe


def judge(text: RecipeText, overrides: Mapping[str, Any] | None = None) -> tuple[Recipe | None, list[Problem]]:
    """Returns the validated recipe, None where it is none, and everything that is wrong with the text."""
    over = overrides or {}
    problems = duplicates_of(text)
    fields = merge(text.fields, over)
    try:
        return Recipe.model_validate(fields), problems
    except ValidationError as error:
        return None, in_order([*problems, *problems_of(error, fields, text, over)])


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over` laid over it, section by section.

    In a list, numbers from 0 name the items.

    Raises:
        RecipeError: There is no such item.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merge(old, value)
        elif isinstance(value, Mapping) and isinstance(old, list) and all(str(name).isdigit() for name in value):
            items = {str(number): item for number, item in enumerate(old)}
            if lost := [name for name in value if str(name) not in items]:
                raise RecipeError(f"'{key}' has no item {lost[0]}: it has {len(old)}.", hint="the first is item 0")
            result[key] = list(merge(items, {str(name): item for name, item in value.items()}).values())
        else:
            result[key] = value
    return result
