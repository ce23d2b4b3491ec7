"""Integer forms of a model that are raced, and the budget of the search that starts from the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgemm.quant.groups import Group
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8, WEIGHT4, WEIGHT8
from edgemm.quant.search import Limits
from edgemm.recipe import Recipe
from edgemm.tensors import IOSpec

STATE_ERROR = 0.1
"""Largest output error, relative to the output's scale, of int8 in a model with a state: it feeds back."""

GUESS, EVERY, MIXED, WEIGHTS, GIVEN = "guess", "every", "dynamic", "weights", "given"
"""Forms: what the placement rules choose; all that has an integer kernel; dynamic scales where there are any;
stored in few bits; the user's own plan."""


def timed(recipe: Recipe) -> bool:
    """Returns whether anything is chosen by time: not when precision, layout and engine are all given."""
    return "auto" in (recipe.quantize.precision, recipe.layout, recipe.engine)


def limits_of(recipe: Recipe, io: IOSpec) -> Limits:
    """Returns the budget of the search."""
    section = recipe.quantize
    return Limits(
        drop=recipe.evaluate.max_drop,
        output_error=STATE_ERROR if io.states else None,
        seconds=section.search_seconds,
        timed=(section.precision != INT8 and timed(recipe)) or section.objective == "size",
    )


def by_size(recipe: Recipe) -> bool:
    """Returns whether the smallest model is wanted."""
    return recipe.quantize.objective == "size"


def settings_of(groups: Sequence[Group], recipe: Recipe, limits: Limits) -> Mapping[str, Mapping[str, str]]:
    """Returns the forms of a model: name -> group -> precision. Groups that are not listed are float."""
    static = {g.name: g.guess for g in groups if g.guess != FLOAT}
    if by_size(recipe):
        order = (WEIGHT4, WEIGHT8, INT8, DYNAMIC)
        return {WEIGHTS: {g.name: next(p for p in order if p in g.options) for g in groups}}
    if not limits.timed:
        return {GUESS: static}
    return {
        GUESS: static,
        EVERY: {g.name: INT8 for g in groups if INT8 in g.options},
        MIXED: static | {g.name: DYNAMIC for g in groups if DYNAMIC in g.options},
    }
