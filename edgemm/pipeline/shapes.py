"""Optimization profiles of a model: sizes from the recipe, else from its samples. One symbol is one range.

A stage in the middle may have sizes that no input has (what is left of a sequence after strided layers). They are
found by running the float stages at the smallest, usual and largest sizes of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgemm.backends.tensorrt import OptimizationProfile, SizeRange, make_profiles, observed_sizes
from edgemm.data import Samples, random_feed
from edgemm.errors import BackendError, RecipeError, did_you_mean
from edgemm.partition import Stage, StageGraph
from edgemm.quant.chain import Chain, filled
from edgemm.recipe import Recipe
from edgemm.runtime.synthetic import symbols_of
from edgemm.tensors import BATCH, IOSpec

LARGEST_BATCH = 8
"""Largest batch that an engine accepts where the recipe says nothing; the usual one is `evaluate.batch`."""

Sizes = Mapping[str, SizeRange]


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes that engines accept.

    Attributes:
        ranges: Symbol -> range, one mapping per profile, symbols between stages included.
        origin: Where they come from, in words.
        frozen: Dynamic dimensions that had one size in every sample, and so have one in the engines.
    """

    ranges: tuple[Sizes, ...]
    origin: str
    frozen: Mapping[str, int] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        """Returns what the user may not expect, in words."""
        return tuple(
            f"'{symbol}' is {size} in every sample: engines will accept only {size}; for other sizes give "
            f"--profile {symbol}=MIN:OPT:MAX"
            for symbol, size in self.frozen.items()
        )

    def profiles(self, stage: Stage) -> tuple[OptimizationProfile, ...]:
        """Returns the optimization profiles of one graph.

        Raises:
            RecipeError: A symbol has no range, or one that is none.
        """
        return make_profiles(stage.inputs, self.ranges)

    def __str__(self) -> str:
        texts = ["; ".join(f"{s} {r.min}..{r.opt}..{r.max}" for s, r in sizes.items()) for sizes in self.ranges]
        return f"{' | '.join(texts) or 'every size is fixed'} ({self.origin})"


def open_dimensions(stages: StageGraph, io: IOSpec) -> tuple[dict[str, None], dict[str, str], dict[str, None]]:
    """Returns the dynamic dimensions: of the inputs, by `INPUT:AXIS`, and of the stages' inputs, in order."""
    places = {f"{i.name}:{axis}": d for i in io.inputs for axis, d in enumerate(i.shape) if isinstance(d, str)}
    inside = dict.fromkeys(d for s in stages.stages for i in s.inputs for d in i.shape if isinstance(d, str))
    return dict.fromkeys(places.values()), places, inside


def find_shapes(recipe: Recipe, stages: StageGraph, io: IOSpec, samples: Samples | None) -> Shapes:
    """Returns the sizes that engines of these stages must accept.

    Args:
        recipe: `profiles`, ranges of `inputs`, and `evaluate.batch`.
        stages: The float stages.
        io: The model's signature.
        samples: Real ones, for sizes that the recipe does not give.

    Raises:
        RecipeError: A size has no range and no samples to read one from, a range is none, a symbol is unknown, or
            the model does not run at the sizes.
    """
    symbols, places, inside = open_dimensions(stages, io)
    given = [{places.get(n, n): SizeRange(*sizes) for n, sizes in one.items()} for one in recipe.ranges] or [{}]
    for symbol in (s for one in given for s in one if s not in symbols and s not in inside):
        name, _, axis = symbol.rpartition(":")
        field = "profiles" if any(symbol in one for one in recipe.profiles) else f"inputs.{name}.shape.{axis}"
        raise RecipeError(
            f"{field}: no dynamic dimension '{symbol}' in this model (dynamic: {_names(symbols, places)}).",
            hint=did_you_mean(symbol, [*symbols, *places, *inside], "see `edgemm inspect MODEL` for the names"),
        )
    if not symbols:
        return Shapes((), "no dynamic dimension")
    wanted = [s for s in symbols if any(s not in one for one in given)]
    seen = _seen(io, samples, wanted)
    batch = recipe.evaluate.batch
    if isinstance(io.batch, str):
        seen[io.batch] = SizeRange(1, batch, max(batch, LARGEST_BATCH))
    if lacking := [s for s in wanted if s not in seen]:
        raise RecipeError(
            f"the dynamic dimension '{lacking[0]}' has no range, and TensorRT needs one.",
            hint=f"give its sizes: --profile {lacking[0]}=MIN:OPT:MAX (in a recipe `profiles: "
            f"{{{lacking[0]}: [MIN, OPT, MAX]}}`), or samples that show them (--calib)",
        )
    ranges = [{s: one.get(s, seen.get(s, SizeRange(0, 0, 0))) for s in symbols} | one for one in given]
    make_profiles(io.inputs, ranges)  # says what is no range
    read = set(wanted) - {io.batch}
    frozen = {s: seen[s].opt for s in wanted if s in read and seen[s].min == seen[s].max}
    origin = "from the recipe" if recipe.ranges else "from the samples" if read else "as usual"
    if all(s in symbols for s in inside):
        return Shapes(tuple(ranges), origin, frozen)
    return Shapes(
        tuple(_with_inside(stages, io, one, number) for number, one in enumerate(ranges)), origin, frozen
    )


def _names(symbols: Mapping[str, None], places: dict[str, str]) -> str:
    """Returns every dimension with an input that has it: `batch (x:0), x_dim1 (x:1)`."""
    first = {symbol: place for place, symbol in reversed(places.items())}
    return ", ".join(f"{s} ({first[s]})" for s in symbols) or "none"


def _seen(io: IOSpec, samples: Samples | None, wanted: Sequence[str]) -> dict[str, SizeRange]:
    """Returns the sizes of the samples; none are read where the batch alone is wanted."""
    of_samples = [s for s in symbols_of(io) if s in wanted and s != io.batch]
    if samples is None or not of_samples:
        return {}
    inputs = [i for i in io.feed_inputs if any(d in of_samples for d in i.shape)]
    shapes = []
    for number in range(len(samples)):
        sample = samples[number]
        shapes.append({i.name: _with_batch(np.shape(sample[i.name]), len(i.shape)) for i in inputs})
    return observed_sizes(inputs, shapes)


def _with_batch(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + shape


def _with_inside(stages: StageGraph, io: IOSpec, sizes: Sizes, number: int) -> Sizes:
    """Returns the sizes with those of tensors between stages, as they are at the ends of the ranges."""
    found: dict[str, dict[int, int]] = {}
    chain = Chain(stages, io)
    for which in range(3):
        at = {symbol: size[which] for symbol, size in sizes.items()}
        chain.reset()
        try:
            values = chain.run(filled(random_feed(io, at, batch=at.get(BATCH, 1)), io))
        except BackendError as error:
            what = ("smallest", "usual", "largest")[which]
            raise RecipeError(
                f"profile {number}: the model does not run at its {what} sizes ({_list(at)}): {error}",
                hint="give sizes that it takes: --profile DIM=MIN:OPT:MAX",
            ) from error
        for stage in stages.stages:
            for spec in stage.inputs:
                for symbol, size in zip(spec.shape, values[spec.name].shape, strict=True):
                    if isinstance(symbol, str) and symbol not in sizes:
                        found.setdefault(symbol, {})[which] = size
    return dict(sizes) | {symbol: SizeRange(*sorted(at.values())) for symbol, at in found.items()}


def _list(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} {size}" for symbol, size in sizes.items())
