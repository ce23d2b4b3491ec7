"""Calibration and evaluation samples: aligned rows of every input, checked once, read as they are needed.

A *sample* is one row of every array: a mapping name -> array without the sample axis. Names that are no model
inputs are labels. `open_samples` reads `.npz`, a folder of `.npz` shards, or the user's own class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from edgemm.errors import DataError
from edgemm.tensors import BATCH, IOSpec

Sample = Mapping[str, np.ndarray]


@runtime_checkable
class Samples(Protocol):
    """Random access to aligned samples. A list of dicts of arrays is one; so is a torch Dataset of dicts."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """Returns sample `index`: every array's row."""
        ...


@dataclass(frozen=True, slots=True)
class Subset:
    """Some samples of another source, in the given order."""

    source: Samples
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]


def make_feed(io: IOSpec, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Returns one call's inputs from one or more samples, without state inputs.

    A row that lacks one axis of the input is a row of a batch and is stacked along axis 0; a row that has every
    axis of the input is a whole input, and then only one sample fits in a call.

    Raises:
        DataError: A sample lacks an input, or rows of different shapes cannot be stacked.
    """
    feed = {}
    for spec in io.feed_inputs:
        rows = []
        for sample in samples:
            if spec.name not in sample:
                raise DataError(
                    f"the data has no array '{spec.name}' (arrays: {', '.join(sorted(sample))}).",
                    hint="every input of the model needs an array of its name",
                )
            rows.append(np.asarray(sample[spec.name]))
        if rows[0].ndim == len(spec.shape) and len(rows) == 1:
            feed[spec.name] = np.ascontiguousarray(rows[0])
            continue
        if any(row.shape != rows[0].shape for row in rows):
            shapes = sorted({row.shape for row in rows})
            raise DataError(
                f"input '{spec.name}': rows of different shapes {shapes} cannot be one batch.",
                hint="use batch 1 for inputs whose size changes from sample to sample",
            )
        feed[spec.name] = np.stack(rows)
    return feed


def batches(io: IOSpec, samples: Samples, size: int) -> Iterator[tuple[list[Sample], dict[str, np.ndarray]]]:
    """Yields `(rows, feed)` for every `size` samples in order; the last may be smaller.

    A fixed or absent batch axis makes every batch one sample long.
    """
    step = size if io.batch == BATCH else 1
    for start in range(0, len(samples), step):
        rows = [samples[i] for i in range(start, min(start + step, len(samples)))]
        yield rows, make_feed(io, rows)
