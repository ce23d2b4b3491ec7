"""Shapes that an engine is told to accept: TensorRT takes contradictions and fails on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgemm.lint.findings import ERROR, Finding
from edgemm.lint.view import View

if TYPE_CHECKING:
    from edgemm.tensors import ShapeRange

Profiles = Sequence[Mapping[str, "ShapeRange"]]
"""Optimization profiles: input -> smallest, usual and largest shape, each."""


def check_profiles(view: View, profiles: Profiles) -> Iterator[Finding]:
    """Yields dynamic inputs that a profile does not cover, ranges that are none, and symbols with two ranges."""
    names = {v.name for v in view.inputs}
    dynamic = [v for v in view.inputs if v.shape is not None and not v.shape.is_static()]
    for number, profile in enumerate(profiles):
        label = f" in profile {number + 1} of {len(profiles)}" if len(profiles) > 1 else ""
        for value in dynamic:
            if value.name not in profile:
                yield _found(
                    "profile-missing",
                    value.name or "",
                    f"its shape is [{_text(value)}] and no profile gives its range{label}: the build fails",
                    f"give its smallest, usual and largest shape: --shapes {value.name}=MIN:OPT:MAX",
                )
        for name in profile:
            if name not in names:
                yield _found(
                    "profile-missing",
                    name,
                    f"there is no such input{label} (inputs: {', '.join(sorted(filter(None, names)))})",
                    "name an input of the model",
                )
        yield from _ranges(view, profile, label)
    if not profiles:
        for value in dynamic:
            yield _found(
                "profile-missing",
                value.name or "",
                f"its shape is [{_text(value)}] and there is no profile: the build fails",
                f"give its smallest, usual and largest shape: --shapes {value.name}=MIN:OPT:MAX",
            )


def _ranges(view: View, profile: Mapping[str, ShapeRange], label: str) -> Iterator[Finding]:
    symbols: dict[str, tuple[tuple[int, int, int], str]] = {}
    for value in view.inputs:
        given = profile.get(value.name or "")
        if given is None or value.shape is None:
            continue
        name = value.name or ""
        if len({len(given.min), len(given.opt), len(given.max), len(value.shape)}) > 1:
            yield _found(
                "profile-range",
                name,
                f"a profile has {len(given.min)}, {len(given.opt)} and {len(given.max)} dimensions, the input "
                f"{len(value.shape)}{label}",
                f"give {len(value.shape)} sizes each",
            )
            continue
        sizes = zip(value.shape, given.min, given.opt, given.max, strict=True)
        for axis, (dim, low, usual, high) in enumerate(sizes):
            yield from _axis(name, axis, dim, (low, usual, high), label)
            symbol = None if isinstance(dim, int) else dim.value
            if symbol is None:
                continue
            known, first = symbols.setdefault(symbol, ((low, usual, high), name))
            if known != (low, usual, high):
                yield _found(
                    "profile-symbol",
                    name,
                    f"'{symbol}' is {low}..{usual}..{high} here and {_dots(known)} in input '{first}'{label}: the "
                    "builder takes it, and the engine fails on what only one of them allows",
                    f"give '{symbol}' one range in all inputs",
                )


def _axis(
    name: str, axis: int, dim: int | ir.SymbolicDim, sizes: tuple[int, int, int], label: str
) -> Iterator[Finding]:
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


def symbol_ranges(view: View, profile: Mapping[str, ShapeRange]) -> dict[str, tuple[int, int, int]]:
    """Returns symbol -> (smallest, usual, largest) as the first input that has it says."""
    ranges: dict[str, tuple[int, int, int]] = {}
    for value in view.inputs:
        given = profile.get(value.name or "")
        if given is None or value.shape is None or len(value.shape) != len(given.min):
            continue
        for dim, *sizes in zip(value.shape, given.min, given.opt, given.max, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                ranges.setdefault(dim.value, (sizes[0], sizes[1], sizes[2]))
    return ranges


def _dots(sizes: Sequence[int]) -> str:
    return "..".join(map(str, sizes))


def _text(value: ir.Value) -> str:
    return ",".join(str(d) if isinstance(d, int) else d.value or "?" for d in value.shape or ())


def _found(rule: str, tensor: str, reason: str, fix: str) -> Finding:
    return Finding(rule, ERROR, reason, fix, tensor=tensor)
