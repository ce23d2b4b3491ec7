"""Shapes that an engine is told to accept: TensorRT takes contradictions and fails on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgemm.lint.findings import ERROR, Finding
from edgemm.tensors import Dim, ShapeRange

if TYPE_CHECKING:
    from edgemm.lint.view import View

Profiles = Sequence[Mapping[str, ShapeRange]]
"""Optimization profiles: input -> smallest, usual and largest shape, each."""

Inputs = Mapping[str, tuple[Dim, ...]]
"""Input -> its sizes and symbols."""

Sizes = tuple[int, int, int]
"""Smallest, usual and largest."""


def inputs_of(view: View) -> dict[str, tuple[Dim, ...]]:
    """Returns the inputs of a graph that have a rank; a size without a symbol gets one of its own."""
    return {
        value.name: tuple(
            d if isinstance(d, int) else d.value or f"{value.name}:{axis}" for axis, d in enumerate(value.shape)
        )
        for value in view.inputs
        if value.name and isinstance(value.shape, ir.Shape)
    }


def check_profiles(inputs: Inputs, profiles: Profiles) -> Iterator[Finding]:
    """Yields dynamic inputs that a profile does not cover, ranges that are none, and symbols with two ranges."""
    dynamic = {n: shape for n, shape in inputs.items() if any(isinstance(d, str) for d in shape)}
    for number, profile in enumerate(profiles or ({},)):
        label = f" in profile {number + 1} of {len(profiles)}" if len(profiles) > 1 else ""
        for name, shape in dynamic.items():
            if name not in profile:
                yield _found(
                    "profile-missing",
                    name,
                    f"its shape is [{','.join(map(str, shape))}] and no profile gives its range{label}: the build "
                    "fails",
                    f"give its smallest, usual and largest shape: --shapes {name}=MIN:OPT:MAX",
                )
        for name in profile:
            if name not in inputs:
                yield _found(
                    "profile-missing",
                    name,
                    f"there is no such input{label} (inputs: {', '.join(inputs)})",
                    "name an input of the model",
                )
        yield from _ranges(inputs, profile, label)


def _ranges(inputs: Inputs, profile: Mapping[str, ShapeRange], label: str) -> Iterator[Finding]:
    symbols: dict[str, tuple[Sizes, str]] = {}
    for name, shape in inputs.items():
        given = profile.get(name)
        if given is None:
            continue
        if {len(given.min), len(given.opt), len(given.max)} != {len(shape)}:
            yield _found(
                "profile-range",
                name,
                f"the profile has {len(given.min)}, {len(given.opt)} and {len(given.max)} sizes, the input "
                f"{len(shape)}{label}",
                f"give {len(shape)} sizes each",
            )
            continue
        for axis, (dim, sizes) in enumerate(zip(shape, _axes(given), strict=True)):
            yield from _axis(name, axis, dim, sizes, label)
            if isinstance(dim, int):
                continue
            known, first = symbols.setdefault(dim, (sizes, name))
            if known != sizes:
                yield _found(
                    "profile-symbol",
                    name,
                    f"'{dim}' is {_dots(sizes)} here and {_dots(known)} in input '{first}'{label}: the builder "
                    "takes it, and the engine fails on what only one of them allows",
                    f"give '{dim}' one range in all inputs",
                )


def _axis(name: str, axis: int, dim: Dim, sizes: Sizes, label: str) -> Iterator[Finding]:
    low, usual, high = sizes
    if not 0 <= low <= usual <= high:
        yield _found(
            "profile-range",
            name,
            f"axis {axis}: {_dots(sizes)} is no range{label}: the profile is rejected and the build fails",
            "smallest ≤ usual ≤ largest",
        )
    elif isinstance(dim, int) and (low, high) != (dim, dim):
        yield _found(
            "profile-range",
            name,
            f"axis {axis} is {dim} and fixed, the profile says {_dots(sizes)}{label}: the build fails",
            f"give {dim} three times, or export the model with this axis dynamic",
        )


def symbol_ranges(inputs: Inputs, profile: Mapping[str, ShapeRange]) -> dict[str, Sizes]:
    """Returns symbol -> its range, as the first input that has it says."""
    ranges: dict[str, Sizes] = {}
    for name, shape in inputs.items():
        given = profile.get(name)
        if given is None or len(shape) != len(given.min):
            continue
        for dim, sizes in zip(shape, _axes(given), strict=True):
            if isinstance(dim, str):
                ranges.setdefault(dim, sizes)
    return ranges


def profile_of(inputs: Inputs, ranges: Mapping[str, Sizes]) -> dict[str, ShapeRange]:
    """Returns a stage's profile from the ranges of symbols; inputs with a symbol that has none are left out."""
    profile = {}
    for name, shape in inputs.items():
        if all(isinstance(d, int) or d in ranges for d in shape):
            axes = [(d, d, d) if isinstance(d, int) else ranges[d] for d in shape]
            low, usual, high = zip(*axes, strict=True) if axes else ((), (), ())
            profile[name] = ShapeRange(tuple(low), tuple(usual), tuple(high))
    return profile


def _axes(given: ShapeRange) -> list[Sizes]:
    return list(zip(given.min, given.opt, given.max, strict=True))


def _dots(sizes: Sequence[int]) -> str:
    return "..".join(map(str, sizes))


def _found(rule: str, tensor: str, reason: str, fix: str) -> Finding:
    return Finding(rule, ERROR, reason, fix, tensor=tensor)
