"""What is in a set of samples: statistics, silence, labels, duplicates and outliers, in one streaming pass.

Kept per sample are a digest, four numbers per array and the values that samples are compared by; the samples
themselves are not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgemm.data.embeddings import Embeddings, Encoders, comparable, gathered
from edgemm.data.samples import Samples, hash_sample, locate, names_of, notes_of, origin_of, spread
from edgemm.data.standout import SHOWN, Outlier, find_outliers, near_pairs
from edgemm.errors import DataError

COMPARED = 5000
"""Most samples that are compared with each other."""

LABELS = ("label", "labels", "class", "target")


@dataclass(frozen=True, slots=True)
class ArrayStatistics:
    """One array over all samples.

    Attributes:
        dtype: numpy dtype name.
        smallest: Smallest size of every axis of a row.
        largest: Largest size of every axis of a row.
        minimum: Of all finite values; None for texts and where there is none.
        maximum: Likewise.
        mean: Likewise.
        std: Likewise.
        nan: Values that are NaN.
        inf: Values that are infinite.
        silent: Share of the rows (of more than one value) whose values are all equal.
        constant: All values of all samples are equal.
        counts: Value -> samples, for labels of few values.
    """

    dtype: str
    smallest: tuple[int, ...]
    largest: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    nan: int
    inf: int
    silent: float
    constant: bool
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Survey:
    """What `survey` found.

    Attributes:
        origin: What the user gave.
        samples: How many.
        digest: The sha256 over all samples.
        label: Array of the labels, or None.
        arrays: Array -> its statistics.
        coverage: Modality -> found, used, unmatched, why; empty where the source pairs nothing.
        duplicates: Groups of samples whose inputs are equal, as indices.
        contradictions: Groups among them whose labels differ.
        near: Pairs of samples that are nearly equal in every input, the nearest first: (index, index, distance).
        near_count: How many such pairs there are.
        outliers: The samples that stand out most.
        outlier_count: How many stand out.
        compared: How many samples were compared with each other.
        by: What they were compared by.
        notes: What the source says of itself.
    """

    origin: str
    samples: int
    digest: str
    label: str | None
    arrays: Mapping[str, ArrayStatistics]
    coverage: Mapping[str, Mapping[str, Any]]
    duplicates: tuple[tuple[int, ...], ...]
    contradictions: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, int, float], ...]
    near_count: int
    outliers: tuple[Outlier, ...]
    outlier_count: int
    compared: int
    by: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return asdict(self)


class _Running:
    """Streaming statistics of one array (Chan, Golub and LeVeque 1979 for the variance)."""

    def __init__(self, row: np.ndarray) -> None:
        self.dtype = row.dtype.name
        self.smallest = self.largest = row.shape
        self.count = self.nan = self.inf = self.silent = 0
        self.mean = self.squares = 0.0
        self.low, self.high = np.inf, -np.inf
        self.counts: Counter[str] | None = Counter()
        self.rows: list[tuple[float, float, float, float]] = []

    def add(self, row: np.ndarray) -> None:
        if row.ndim == len(self.smallest):
            self.smallest = tuple(map(min, self.smallest, row.shape))
            self.largest = tuple(map(max, self.largest, row.shape))
        if row.dtype.kind not in "fiub":
            self._count(str(row))
            self.rows.append((np.nan,) * 4)
            return
        if row.dtype.kind in "iub" and row.size == 1:
            self._count(str(row.reshape(-1)[0]))
        else:
            self.counts = None
        values = row.reshape(-1).astype(np.float64)
        finite = values[np.isfinite(values)]
        self.nan += int(np.isnan(values).sum())
        self.inf += int(values.size - finite.size - np.isnan(values).sum())
        self.silent += values.size > 1 and bool((values == values[0]).all())
        if not finite.size:
            self.rows.append((np.nan,) * 4)
            return
        mean, low, high = float(finite.mean()), float(finite.min()), float(finite.max())
        squares = float(((finite - mean) ** 2).sum())
        self.rows.append((mean, float(np.sqrt(squares / finite.size)), low, high))
        self.low, self.high = min(self.low, low), max(self.high, high)
        total, delta = self.count + finite.size, mean - self.mean
        self.squares += squares + delta**2 * self.count * finite.size / total
        self.mean += delta * finite.size / total
        self.count = total

    def _count(self, value: str) -> None:
        if self.counts is not None:
            self.counts[value] += 1
            if len(self.counts) > 1000:
                self.counts = None

    def result(self, samples: int, *, is_label: bool) -> ArrayStatistics:
        some = self.count > 0
        counted: Mapping[str, int] = self.counts or {}
        listed = is_label or (0 < len(counted) <= 20)
        return ArrayStatistics(
            self.dtype,
            self.smallest,
            self.largest,
            self.low if some else None,
            self.high if some else None,
            self.mean if some else None,
            float(np.sqrt(self.squares / self.count)) if some else None,
            self.nan,
            self.inf,
            self.silent / samples,
            samples > 1 and (self.low == self.high if some else len(counted) == 1),
            {value: counted[value] for value in sorted(counted, key=by_value)} if listed else {},
        )


def by_value(label: str) -> tuple[float, str]:
    """Returns what labels are sorted by: numbers by value, before texts."""
    try:
        return float(label), ""
    except ValueError:
        return float("inf"), label


def find_label(samples: Samples, label: str | None) -> str | None:
    """Returns the array of the labels: the named one, else one called `label`, `class` or `target`, else None.

    Raises:
        DataError: There is no array of this name.
    """
    names = names_of(samples)
    if label is not None and label not in names:
        raise DataError(
            f"{origin_of(samples)}: no array '{label}' (arrays: {', '.join(names)}).", hint="correct --label"
        )
    return label if label is not None else next((n for n in LABELS if n in names), None)


class _Reading:
    """What one pass over the samples keeps of them."""

    def __init__(
        self, inputs: Sequence[str], label: str | None, compared: frozenset[int], encoders: Encoders | None
    ) -> None:
        self.sha = hashlib.sha256()
        self.running: dict[str, _Running] = {}
        self.groups: dict[bytes, list[int]] = {}
        self.labels: list[str] = []
        self._inputs, self._label, self._compared, self._encoders = inputs, label, compared, encoders
        self._raw: dict[str, list[np.ndarray]] = {}

    def add(self, samples: Samples, index: int, names: Sequence[str]) -> None:
        sample = samples[index]
        rows = {n: np.asarray(sample[n]) for n in names if n in sample}
        if len(rows) < len(names):
            missing = next(n for n in names if n not in rows)
            raise DataError(
                f"{locate(samples, index)}: no array '{missing}'.", hint="every sample needs all arrays"
            )
        hash_sample(self.sha, sample)
        own = hashlib.sha256()
        hash_sample(own, {n: rows[n] for n in self._inputs})
        self.groups.setdefault(own.digest(), []).append(index)
        self.labels.append(rows[self._label].tobytes().hex() if self._label is not None else "")
        for name, row in rows.items():
            self.running.setdefault(name, _Running(row)).add(row)
        if index in self._compared:
            for name, values in comparable(sample, self._inputs, self._encoders).items():
                self._raw.setdefault(name, []).append(values)

    def embeddings(self) -> Embeddings:
        return gathered(self._raw, self._encoders)


def survey(
    samples: Samples,
    *,
    label: str | None = None,
    encoders: Encoders | None = None,
    step: Callable[[int], Any] = lambda done: None,
) -> Survey:
    """Returns what is in `samples`.

    Args:
        samples: From `open_samples`.
        label: Array of the labels; None: one whose name says so.
        encoders: Samples are compared by what these make of them; None: by raw values.
        step: Told how many samples are read.

    Raises:
        DataError: No samples, an array that is missing in one, or a row that cannot be read.
    """
    origin = origin_of(samples)
    if len(samples) == 0:
        raise DataError(f"{origin}: no samples.", hint="it needs at least one row in every array")
    names, label = names_of(samples), find_label(samples, label)
    inputs = [n for n in names if n != label]
    compared = spread(len(samples), COMPARED)
    read = _Reading(inputs, label, frozenset(compared), encoders)
    for index in range(len(samples)):
        read.add(samples, index, names)
        step(index + 1)
    running, labels, embeddings = read.running, read.labels, read.embeddings()
    duplicates = [tuple(g) for g in read.groups.values() if len(g) > 1]
    near, near_count, nearest = near_pairs(embeddings, compared, duplicates)
    outliers = find_outliers(samples, {n: running[n].rows for n in inputs}, compared, nearest)
    return Survey(
        origin=origin,
        samples=len(samples),
        digest=read.sha.hexdigest(),
        label=label,
        arrays={n: r.result(len(samples), is_label=n == label) for n, r in running.items()},
        coverage={n: c.to_json() for n, c in getattr(samples, "coverage", {}).items()},
        duplicates=tuple(duplicates),
        contradictions=tuple(g for g in duplicates if len({labels[i] for i in g}) > 1),
        near=tuple(near),
        near_count=near_count,
        outliers=tuple(outliers[:SHOWN]),
        outlier_count=len({o.index for o in outliers}),
        compared=len(compared),
        by=embeddings.by,
        notes=notes_of(samples),
    )
