"""Samples from a data file as the calls of a session: in order, in batches, with the place of each row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgemm.errors import DataError

if TYPE_CHECKING:
    from edgemm.data import Sample, Source
    from edgemm.tensors import IOSpec


def check_batch(io: IOSpec, batch: int) -> None:
    """Refuses a batch that the model cannot take.

    Raises:
        DataError: The samples of a model with states are one stream, or the model has no batch axis.
    """
    if batch == 1:
        return
    if io.states:
        names = ", ".join(s.input for s in io.states)
        raise DataError(
            f"--batch {batch}: this model keeps a state ({names}), so its samples run one after the other.",
            hint="leave --batch out",
        )
    if io.batch is None:
        raise DataError(
            f"--batch {batch}: the inputs of this model have no common batch axis.", hint="leave --batch out"
        )


def calls(io: IOSpec, samples: Source, batch: int) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Yields `(index of the first sample, number of samples, feed)` for up to `batch` samples at a time.

    A call ends early where the next sample's shapes differ, so a file with several lengths of time runs at any
    batch size. Only the samples of one call are in memory.

    Raises:
        DataError: The file lacks an input; the message names the first sample without it.
    """
    from edgemm.data import make_feed

    rows: list[Sample] = []
    shapes: list[tuple[int, ...]] = []
    first = 0
    for index in range(len(samples)):
        sample = samples[index]
        own = [np.shape(sample[i.name]) for i in io.feed_inputs if i.name in sample]
        if rows and (len(rows) == batch or own != shapes):
            yield first, len(rows), make_feed(io, rows)
            rows = []
        if not rows:
            first, shapes = index, own
        rows.append(sample)
    if rows:
        yield first, len(rows), make_feed(io, rows)
