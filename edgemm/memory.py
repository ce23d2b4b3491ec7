"""Gives memory that a step has freed back to the system, before the next step asks for its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
from collections.abc import Iterator

SMALL = 16 * 2**20
"""Bytes below which giving back is not worth the time that it takes."""


@contextlib.contextmanager
def long_lived() -> Iterator[None]:
    """Takes everything that is there now to be in use until the block ends: garbage is searched for elsewhere.

    Most objects of a conversion are modules; leaving them out takes a fraction of the time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back_memory(size: float = math.inf) -> None:
    """Collects garbage and, with glibc, returns freed memory to the system.

    Graphs hold cycles: the arrays of a dropped one stay until garbage is collected.

    Args:
        size: Bytes that may have become free; nothing is done for less than `SMALL`.
    """
    if size < SMALL:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
