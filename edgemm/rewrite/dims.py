"""Dimensions as products: 96, batch, 4·batch. What shape arithmetic and layout chains are reasoned about with.

A dimension is a positive integer times symbols, so that products and exact quotients stay dimensions. Anything
else (a sum, an unnamed dimension) is None: unknown, and equal to nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

_PRODUCT = re.compile(r"(?:(\d+)\*)?([A-Za-z_][\w.:/]*)")


@dataclass(frozen=True, slots=True)
class Dim:
    """`size` times `symbols` (sorted; a symbol may occur twice)."""

    size: int
    symbols: tuple[str, ...] = ()

    @property
    def fixed(self) -> int | None:
        """The integer that it is, or None while it has symbols."""
        return None if self.symbols else self.size

    def __mul__(self, other: Dim) -> Dim:
        return Dim(self.size * other.size, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Dim) -> Dim | None:
        """Returns the exact quotient, or None if there is none."""
        if other.size == 0 or self.size % other.size:
            return None
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        return Dim(self.size // other.size, tuple(left))


ONE = Dim(1)


def product(dims: Iterable[Dim]) -> Dim:
    """Returns the product of `dims`."""
    return math.prod(dims, start=ONE)


def read(dim: int | ir.SymbolicDim) -> Dim | None:
    """Returns `dim` of an ONNX shape as a product, or None when it is unnamed or another expression."""
    if isinstance(dim, int):
        return Dim(dim)
    match = _PRODUCT.fullmatch(dim.value or "")
    return Dim(int(match[1] or 1), (match[2],)) if match else None


def of(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Returns the dimensions of `value`, or None unless all are known."""
    if value is None or value.shape is None:
        return None
    dims = tuple(read(d) for d in value.shape)
    return None if any(d is None for d in dims) else tuple(d for d in dims if d is not None)


def shape(dims: Sequence[Dim | None]) -> ir.Shape:
    """Returns the ONNX shape of `dims`."""
    return ir.Shape([_write(d) for d in dims])


def _write(dim: Dim | None) -> int | str | None:
    if dim is None or len(dim.symbols) > 1:
        return None
    if not dim.symbols:
        return dim.size
    return dim.symbols[0] if dim.size == 1 else f"{dim.size}*{dim.symbols[0]}"


def target(source: Sequence[Dim], wanted: Sequence[Dim]) -> list[int] | None:
    """Returns the constant with which Reshape makes `wanted` of `source`, or None if no constant does.

    Fixed dimensions are written out; an open one is copied (0) from the same place or left to Reshape (−1), at
    most once.
    """
    if any(d.fixed == 0 for d in (*source, *wanted)):
        return None
    if sum(d.fixed is None for d in wanted) <= 1:
        return [-1 if d.fixed is None else d.size for d in wanted]
    result = []
    for i, dim in enumerate(wanted):
        if dim.fixed is not None:
            result.append(dim.size)
        else:
            result.append(0 if i < len(source) and source[i] == dim else -1)
    return result if result.count(-1) <= 1 else None


def reshaped(shape: Sequence[Dim], wanted: Sequence[Dim | None], allow_zero: bool) -> tuple[Dim, ...] | None:
    """Returns the dimensions of Reshape(x, wanted) for x of `shape`, or None if they cannot be told."""
    result: list[Dim | None] = []
    for i, dim in enumerate(wanted):
        if dim is None:
            return None
        if dim.fixed == 0 and not allow_zero:
            if i >= len(shape):
                return None
            result.append(shape[i])
        else:
            result.append(None if dim.fixed == -1 else dim)
    if result.count(None) > 1:
        return None
    rest = product(d for d in result if d is not None)
    missing = product(shape).over(rest) if None in result else ONE
    if missing is None or any(d.fixed == 0 for d in shape):
        return None
    full = tuple(missing if d is None else d for d in result)
    return full if product(full) == product(shape) else None
