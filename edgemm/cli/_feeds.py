"""What a session is called with: the samples of a data file in order and in batches, or random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgemm.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from edgemm.data import Sample, Source
    from edgemm.tensors import IOSpec


MAX_BYTES = 256 * 2**20
"""Most memory that the feeds of a measurement may take."""

MAX_FEEDS = 4096


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


def data_feeds(io: IOSpec, samples: Source, batch: int) -> list[dict[str, np.ndarray]]:
    """Returns feeds of `batch` samples each, in order and starting over at the end, for a measurement.

    They are in memory before the clock runs; there are at most `MAX_FEEDS`, and `MAX_BYTES` in all.

    Raises:
        DataError: No samples, or the rows of one feed differ in shape.
    """
    from edgemm.data import make_feed

    if len(samples) == 0:
        raise DataError(f"{samples.origin}: no samples.", hint="the file needs at least one row in every array")
    feeds: list[dict[str, np.ndarray]] = []
    size = 0
    for start in range(0, len(samples), batch):
        feeds.append(make_feed(io, [samples[(start + i) % len(samples)] for i in range(batch)]))
        size += sum(array.nbytes for array in feeds[-1].values())
        if len(feeds) >= MAX_FEEDS or size >= MAX_BYTES:
            break
    return feeds


def chosen_sizes(io: IOSpec, batch: int, named: Mapping[str, int], ran: Mapping[str, int]) -> dict[str, int]:
    """Returns the size of every symbolic dimension in random inputs.

    Args:
        io: The model's signature.
        batch: Size of the batch axis.
        named: What the user named with `--dim`.
        ran: Sizes at which the model was run when it was converted.

    Raises:
        DataError: `named` has a dimension that no input has.
    """
    from edgemm.runtime.synthetic import ASSUMED, symbols_of

    symbols = symbols_of(io)
    for name in named:
        if name not in symbols:
            there = ", ".join(symbols) or "none"
            raise DataError(
                f"--dim {name}: no input has a dimension of this name (there are: {there}).",
                hint=did_you_mean(name, symbols, "`edgemm inspect` shows the dimensions of every input"),
            )
    sizes = {name: named.get(name, ran.get(name, ASSUMED)) for name in symbols}
    return sizes | ({io.batch: batch} if isinstance(io.batch, str) else {})
