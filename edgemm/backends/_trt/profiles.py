"""Optimization profiles from named sizes, and the checks that TensorRT does not make.

One symbol is one range, in every input and every stage: TensorRT takes a profile in which `batch` is 1 to 4 for
one input and 1 to 8 for another, and fails when the engine runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgemm.errors import RecipeError, did_you_mean
from edgemm.runtime._trt.sidecar import OptimizationProfile
from edgemm.tensors import ShapeRange, TensorSpec


class SizeRange(NamedTuple):
    """The smallest, usual and largest size of one symbol."""

    min: int
    opt: int
    max: int


def make_profiles(
    inputs: Sequence[TensorSpec], ranges: Sequence[Mapping[str, SizeRange]]
) -> tuple[OptimizationProfile, ...]:
    """Returns one optimization profile per entry of `ranges`, empty when every size is fixed.

    Args:
        inputs: Of the stage.
        ranges: Symbol -> sizes, per profile. Symbols that only other stages have are left out.

    Raises:
        RecipeError: A symbol has no range, or a range that is none.
    """
    dynamic = [i for i in inputs if any(isinstance(d, str) for d in i.shape)]
    if not dynamic:
        return ()
    if not ranges:
        names = sorted({d for i in dynamic for d in i.shape if isinstance(d, str)})
        raise RecipeError(
            f"the sizes {_list(names)} of input '{dynamic[0].name}' are dynamic and have no range.",
            hint="give smallest, usual and largest size of each, or calibration data to read them from",
        )
    profiles = []
    for number, sizes in enumerate(ranges):
        for symbol, size in sizes.items():
            _check_size(symbol, SizeRange(*size), number)
        profiles.append(OptimizationProfile({i.name: _shapes(i, sizes, number) for i in dynamic}))
    # ranges that differ in symbols of other stages only give the same profile
    return tuple(p for i, p in enumerate(profiles) if p not in profiles[:i])


def observed_sizes(
    inputs: Sequence[TensorSpec], shapes: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, SizeRange]:
    """Returns symbol -> smallest, most common and largest size in `shapes`, one mapping input -> shape per sample.

    Raises:
        RecipeError: There are no samples, a sample lacks a dynamic input, or its shape does not fit.
    """
    seen: dict[str, Counter[int]] = {}
    for number, sample in enumerate(shapes):
        for spec in inputs:
            if not any(isinstance(d, str) for d in spec.shape):
                continue
            shape = sample.get(spec.name)
            if shape is None or len(shape) != len(spec.shape):
                raise RecipeError(
                    f"sample {number}: got shape {None if shape is None else list(shape)} for input "
                    f"'{spec.name}', expected {list(spec.shape)}.",
                    hint="give the data that the model was converted with",
                )
            for symbol, size in zip(spec.shape, shape, strict=True):
                if isinstance(symbol, str):
                    seen.setdefault(symbol, Counter())[size] += 1
    if not seen and any(isinstance(d, str) for i in inputs for d in i.shape):
        raise RecipeError("no samples to read dynamic sizes from.", hint="give calibration data, or the ranges")
    return {
        symbol: SizeRange(min(sizes), max(sizes, key=lambda s: (sizes[s], s)), max(sizes))
        for symbol, sizes in seen.items()
    }


def check_profiles(inputs: Sequence[TensorSpec], profiles: Sequence[OptimizationProfile]) -> None:
    """Checks profiles against the inputs of a graph.

    Raises:
        RecipeError: An input is unknown or missing, a shape does not fit, min ≤ opt ≤ max does not hold, or one
            symbol has two ranges.
    """
    known = {i.name: i for i in inputs}
    dynamic = [i for i in inputs if any(isinstance(d, str) for d in i.shape)]
    if dynamic and not profiles:
        make_profiles(inputs, ())
    for number, profile in enumerate(profiles):
        for name in (*profile.shapes, *profile.values):
            if name not in known:
                raise RecipeError(
                    f"profile {number}: the graph has no input '{name}' (inputs: {', '.join(known)}).",
                    hint=did_you_mean(name, known, "take it out of the profile"),
                )
        for spec in dynamic:
            if spec.name not in profile.shapes:
                raise RecipeError(
                    f"profile {number}: input '{spec.name}' {list(spec.shape)} has dynamic sizes and no range.",
                    hint="every profile needs a range for every dynamic input",
                )
        ranges: dict[str, tuple[SizeRange, str]] = {}
        for name, shape in profile.shapes.items():
            _check_shape(known[name], shape, ranges, number)
        for name, value in profile.values.items():
            _check_order(value, f"profile {number}: the values of '{name}'")


def _check_shape(
    spec: TensorSpec, shape: ShapeRange, ranges: dict[str, tuple[SizeRange, str]], number: int
) -> None:
    where = f"profile {number}: input '{spec.name}'"
    _check_order(shape, where)
    if len(shape.opt) != len(spec.shape):
        raise RecipeError(
            f"{where}: got shape {list(shape.opt)}, expected {list(spec.shape)}.",
            hint=f"give {len(spec.shape)} sizes",
        )
    for axis, want in enumerate(spec.shape):
        got = SizeRange(shape.min[axis], shape.opt[axis], shape.max[axis])
        if isinstance(want, int):
            if set(got) != {want}:
                raise RecipeError(
                    f"{where}, axis {axis}: got {got.min}..{got.max}, the graph has the fixed size {want} there.",
                    hint=f"give {want} for min, opt and max",
                )
            continue
        _check_size(want, got, number)
        first, name = ranges.setdefault(want, (got, spec.name))
        if first != got:
            raise RecipeError(
                f"{where}, axis {axis} ('{want}'): got {got.min}..{got.opt}..{got.max}, but input '{name}' has "
                f"{first.min}..{first.opt}..{first.max} for '{want}'.",
                hint=f"'{want}' is one size: give it one range in all inputs",
            )


def _check_order(shape: ShapeRange, where: str) -> None:
    if not len(shape.min) == len(shape.opt) == len(shape.max):
        raise RecipeError(
            f"{where}: min {list(shape.min)}, opt {list(shape.opt)} and max {list(shape.max)} differ in length.",
            hint="give the same number of sizes for each",
        )
    if not all(low <= usual <= high for low, usual, high in zip(shape.min, shape.opt, shape.max, strict=True)):
        raise RecipeError(
            f"{where}: got min {list(shape.min)}, opt {list(shape.opt)}, max {list(shape.max)}, "
            "expected min ≤ opt ≤ max.",
            hint="swap the sizes that are the wrong way round",
        )


def _check_size(symbol: str, size: SizeRange, number: int) -> None:
    if not 0 <= size.min <= size.opt <= size.max or size.max < 1 or size.max >= 2**31:
        raise RecipeError(
            f"profile {number}: '{symbol}' got {size.min}..{size.opt}..{size.max}, expected "
            "0 ≤ min ≤ opt ≤ max and at least 1 for max.",
            hint="give the smallest, the usual and the largest size, in this order",
        )


def _shapes(spec: TensorSpec, sizes: Mapping[str, SizeRange], number: int) -> ShapeRange:
    def shape(which: int) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else sizes[d][which] for d in spec.shape)

    for symbol in spec.shape:
        if isinstance(symbol, str) and symbol not in sizes:
            raise RecipeError(
                f"profile {number}: no range for '{symbol}' of input '{spec.name}' (ranges: {_list(sizes)}).",
                hint=did_you_mean(symbol, sizes, f"give smallest, usual and largest size of '{symbol}'"),
            )
    return ShapeRange(shape(0), shape(1), shape(2))


def _list(names: Sequence[str] | Mapping[str, SizeRange]) -> str:
    return ", ".join(f"'{n}'" for n in names) or "none"
