"""What bounds a layer: how fast this machine computes, or how fast it moves bytes (Williams et al., 2009).

The roofline model is an estimate: bytes are the least that must move, and they are taken to come from memory. A
layer whose weights stay in a cache between runs can be faster than its roof; one that is far below it is bound by
something else, its own start for example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemm.profiling.peaks import Peaks

COMPUTE, MEMORY = "compute", "memory"


@dataclass(frozen=True, slots=True)
class Roof:
    """What a layer needs at least.

    Attributes:
        bound: `COMPUTE` or `MEMORY`: what takes longer at this machine's peaks.
        ms: How long that takes.
        intensity: Operations per byte; None where they are not counted.
    """

    bound: str
    ms: float
    intensity: float | None


def roof(peaks: Peaks, flops: int | None, moved: int | None, *, integer: bool = False) -> Roof | None:
    """Returns the roof of a layer, or None where its bytes are unknown or nothing moves.

    An operator whose arithmetic is not counted is taken to be bound by memory: it does little per element.

    Args:
        peaks: Of the machine.
        flops: Of one call.
        moved: Bytes of one call.
        integer: Whether the products are those of integers.
    """
    rate = peaks.integer_flops if integer else peaks.float_flops
    if not moved or (flops and rate is None):
        return None
    memory = moved / peaks.bandwidth
    compute = flops / rate if flops and rate else 0.0
    bound = COMPUTE if compute > memory else MEMORY
    return Roof(bound, max(memory, compute) * 1e3, flops / moved if flops else None)


def ridge(peaks: Peaks) -> dict[str, Any]:
    """Returns the intensities, in operations per byte, above which this machine's arithmetic is the bound."""
    integer = peaks.integer_flops
    return {
        "float": peaks.float_flops / peaks.bandwidth,
        "int8": None if integer is None else integer / peaks.bandwidth,
    }
