"""What is left of a recipe without the fields that are wrong, so that the rest of it can be checked, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from edgemm.recipe.problems import existing
from edgemm.recipe.schema import Recipe
from edgemm.recipe.source import Loc

_ROUNDS = 10
"""Taking away a field may make another one wrong; then that goes, too."""


def salvage(fields: Mapping[str, Any]) -> tuple[Recipe | None, frozenset[Loc]]:
    """Returns the recipe without its wrong fields, and which of the schema's these are.

    A list with a wrong item goes as a whole, and a section with it that lacks a field. What goes without a loss,
    since the schema has no such field, is not among the fields that are returned.

    Args:
        fields: Nested sections, as `Recipe` takes them.

    Returns:
        None where nothing can be left: without a model there is no recipe.
    """
    lost: set[Loc] = set()
    for _ in range(_ROUNDS):
        try:
            return Recipe.model_validate(fields), frozenset(lost)
        except ValidationError as error:
            items = error.errors(include_url=False)
        found = [(existing(item["loc"], fields, item["type"]), item["type"]) for item in items]
        for loc, kind in found:
            cut = _cut(loc[:-1] if kind == "missing" else loc)
            fields = _without(fields, cut)
            if cut != loc or kind != "extra_forbidden":
                lost.add(cut)
        if any(loc in (("model",), ("model", "path")) for loc, _ in found):
            break
    return None, frozenset()


def _cut(loc: Loc) -> Loc:
    """Returns the path up to the first list in it; what the whole recipe contradicts is the precision."""
    numbers = [i for i, part in enumerate(loc) if isinstance(part, int)]
    return loc[: numbers[0]] if numbers else loc or ("quantize",)


def _without(fields: Mapping[str, Any], loc: Loc) -> dict[str, Any]:
    key, rest = str(loc[0]), loc[1:]
    kept = {k: v for k, v in fields.items() if k != key}
    inner = fields.get(key)
    return {**kept, key: _without(inner, rest)} if rest and isinstance(inner, Mapping) else kept
