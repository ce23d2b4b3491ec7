"""Inputs for a measurement where there are no samples: random numbers in sizes that the model is known to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemm.tensors import IOSpec

ASSUMED = 16
"""Size of a symbolic dimension of which nothing is known."""


def checked_sizes(dynamic: Mapping[str, Any]) -> dict[str, int]:
    """Returns symbol -> the first size that the export ran, from a manifest's `info.dynamic`."""
    return {d["symbol"]: d["checked"][0] for d in dynamic.get("dynamic", ()) if d["checked"]}


def symbols_of(io: IOSpec) -> tuple[str, ...]:
    """Returns the symbolic dimensions of the inputs, states apart, in order."""
    return tuple(dict.fromkeys(d for i in io.feed_inputs for d in i.shape if isinstance(d, str)))


def random_feed(io: IOSpec, sizes: Mapping[str, int], *, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns one call's inputs: seeded standard normal numbers, ones for masks, 0 or 1 for other integers.

    0 and 1 are in any vocabulary; 8 and 16 bits, of cameras and microphones, are 0 to 255; texts are three words.
    Times that depend on the values (early exits, denormal numbers) differ from those of real inputs.

    Args:
        io: The model's signature.
        sizes: Symbolic dimension -> size; one that is missing is `ASSUMED`.
        batch: Size of the batch axis.
        seed: Of the random numbers.
    """
    known = {**dict.fromkeys(symbols_of(io), ASSUMED), **sizes}
    if isinstance(io.batch, str):
        known[io.batch] = batch
    random = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for spec in io.feed_inputs:
        shape = [known[d] if isinstance(d, str) else d for d in spec.shape]
        if isinstance(io.batch, int) and spec.shape[:1] == (io.batch,):
            shape[0] = batch
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "U":
            feed[spec.name] = np.full(shape, "one two three")
        elif dtype in (np.uint8, np.int16):  # what sensors give
            feed[spec.name] = random.integers(0, 256, shape).astype(dtype)
        elif dtype.kind in "fc":
            feed[spec.name] = random.standard_normal(shape).astype(dtype)
        elif "mask" in spec.name.lower() or dtype.kind == "b":
            feed[spec.name] = np.ones(shape, dtype)
        else:
            feed[spec.name] = random.integers(0, 2, shape).astype(dtype)
    return feed
