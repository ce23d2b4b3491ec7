"""What a sample is, how samples become a feed, and how they are divided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from edgemm.errors import DataError, did_you_mean
from edgemm.tensors import BATCH, IOSpec, TensorSpec

Sample = Mapping[str, np.ndarray]

NAMED = (
    "every input of the model needs an array of its name; a state has none and is declared (--state IN=OUT), and "
    "how an input is made of raw data is said in a recipe (inputs.NAME.preprocess)"
)
"""What to do where an array is missing and none has a similar name."""


@runtime_checkable
class Samples(Protocol):
    """Random access to aligned samples. A list of dicts of arrays is one; so is a torch Dataset of dicts."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """Returns sample `index`: every array's row."""
        ...


class Source(Samples, Protocol):
    """Samples that know where they come from: what `open_samples` returns."""

    @property
    def origin(self) -> str:
        """What the user gave, for messages: a file, a folder, `reader.py:Reader`."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, inputs and labels."""
        ...

    @property
    def digest(self) -> str:
        """The sha256 over every sample's content in order, in hex; computed by streaming."""
        ...

    def locate(self, index: int) -> str:
        """Returns where sample `index` is, for messages: `"calib.npz row 3"`."""
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

    @property
    def origin(self) -> str:
        """The source's origin."""
        return origin_of(self.source)

    @property
    def names(self) -> tuple[str, ...]:
        """The source's names."""
        return names_of(self.source)

    @property
    def digest(self) -> str:
        """The sha256 over this subset's content in order."""
        return digest_of(self)

    def locate(self, index: int) -> str:
        """Returns where sample `index` of this subset is in the source."""
        return locate(self.source, self.indices[index])


def spread(count: int, most: int) -> tuple[int, ...]:
    """Returns at most `most` of `count` indices, ascending and evenly spread."""
    if count <= most:
        return tuple(range(count))
    return tuple(int(i) for i in np.linspace(0, count - 1, most).round())


def thinned(samples: Samples, most: int) -> Subset:
    """Returns at most `most` of the samples, evenly spread."""
    return Subset(samples, spread(len(samples), most))


def origin_of(samples: Samples) -> str:
    """Returns what messages call these samples: the source's own origin, else `"the data"`."""
    return str(getattr(samples, "origin", "the data"))


def locate(samples: Samples, index: int) -> str:
    """Returns where sample `index` is, for messages."""
    own = getattr(samples, "locate", None)
    return str(own(index)) if own is not None else f"{origin_of(samples)} row {index}"


def names_of(samples: Samples) -> tuple[str, ...]:
    """Returns the names of the arrays: the source's own, else those of the first sample."""
    own = getattr(samples, "names", None)
    if own is not None:
        return tuple(own)
    return tuple(samples[0]) if len(samples) else ()


def notes_of(samples: Samples) -> tuple[str, ...]:
    """Returns a reader's `notes`: what should be known of the data; also through `Subset` and its like."""
    inner: object = samples
    while inner is not None and not hasattr(inner, "notes"):
        inner = getattr(inner, "source", None)
    return tuple(getattr(inner, "notes", ()))


def digest_of(samples: Samples) -> str:
    """Returns the sha256 over names, dtypes, shapes and values of every sample in order.

    The same samples give the same digest from whatever source they come: one file, shards or a class.
    """
    sha = hashlib.sha256()
    for index in range(len(samples)):
        hash_sample(sha, samples[index])
    return sha.hexdigest()


def hash_sample(sha: hashlib._Hash, sample: Sample) -> None:
    """Adds one sample to a digest, for callers that stream through the samples anyway."""
    for name in sorted(sample):
        row = np.asarray(sample[name])
        sha.update(f"{name}\0{row.dtype.str}\0{row.shape}\0".encode())
        sha.update(np.ascontiguousarray(row).tobytes())


def has_batch_axis(io: IOSpec, spec: TensorSpec) -> bool:
    """True when axis 0 of `spec` counts samples, so that a sample's row lacks this axis."""
    return io.batch is not None and len(spec.shape) > 0 and spec.shape[0] == io.batch


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
                    hint=did_you_mean(
                        spec.name,
                        sorted(set(sample) - {i.name for i in io.inputs}),
                        NAMED,
                    ),
                )
            rows.append(np.asarray(sample[spec.name]))
        if rows[0].ndim == len(spec.shape) and len(rows) == 1:
            feed[spec.name] = np.require(rows[0], requirements=["C", "A"])
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
    """Yields `(rows, feed)` for up to `size` samples at a time, in order.

    A batch ends early where the next sample's shapes differ, so sources with several lengths of time work at
    any size. A fixed or absent batch axis, or an input without one, makes every batch one sample long.
    """
    step = size if io.batch == BATCH and all(has_batch_axis(io, i) for i in io.feed_inputs) else 1
    rows: list[Sample] = []
    shapes: list[tuple[int, ...]] = []
    for index in range(len(samples)):
        sample = samples[index]
        own = [np.shape(sample[i.name]) for i in io.feed_inputs if i.name in sample]
        if rows and (len(rows) == step or own != shapes):
            yield rows, make_feed(io, rows)
            rows = []
        rows.append(sample)
        shapes = own
    if rows:
        yield rows, make_feed(io, rows)


def split(samples: Samples, fractions: Mapping[str, float], seed: int) -> dict[str, Subset]:
    """Returns disjoint parts, drawn at random by `seed`, each in the order of the source.

    The same number of samples, fractions and seed give the same parts. Every part has at least one sample.

    Raises:
        DataError: The fractions are not in (0, 1], add up to more than 1, or there are fewer samples than parts.
    """
    counts = _part_sizes(len(samples), fractions)
    order = np.random.default_rng(seed).permutation(len(samples))
    parts, start = {}, 0
    for name, count in counts.items():
        chosen = np.sort(order[start : start + count])
        parts[name] = Subset(samples, tuple(int(i) for i in chosen))
        start += count
    return parts


def split_in_order(samples: Samples, fractions: Mapping[str, float]) -> dict[str, Subset]:
    """Returns disjoint consecutive parts: for models with a state, whose samples are one stream.

    Raises:
        DataError: As for `split`.
    """
    parts, start = {}, 0
    for name, count in _part_sizes(len(samples), fractions).items():
        parts[name] = Subset(samples, tuple(range(start, start + count)))
        start += count
    return parts


def _part_sizes(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    text = ", ".join(f"{name} {value:g}" for name, value in fractions.items())
    if any(not 0 < f <= 1 for f in fractions.values()) or sum(fractions.values()) > 1 + 1e-9:
        raise DataError(
            f"cannot split by {text}: fractions must be above 0 and add up to at most 1.",
            hint="for example calibration 0.3, search 0.3, evaluation 0.4",
        )
    if total < len(fractions):
        raise DataError(
            f"{total} samples cannot be split into {len(fractions)} disjoint parts ({text}).",
            hint="give more samples, or separate files for calibration and evaluation",
        )
    sizes = {name: max(1, int(total * f + 1e-9)) for name, f in fractions.items()}
    while sum(sizes.values()) > total:
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] -= 1
    if abs(sum(fractions.values()) - 1) <= 1e-9:
        sizes[list(sizes)[-1]] += total - sum(sizes.values())
    return sizes
