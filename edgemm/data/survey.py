"""What is in a set of samples: statistics, silence, labels, duplicates and outliers, in one streaming pass.

Kept per sample are a digest, four numbers per array and the values that samples are compared by; the samples
themselves are not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgemm.data.embeddings import Embeddings, Encoders, encoder_embeddings, places, raw_embeddings
from edgemm.data.samples import Samples, hash_sample, locate, names_of, notes_of, origin_of, spread
from edgemm.errors import DataError

NEAR = 0.05
"""Samples closer than this share of the distance of two random ones, in every input, are near duplicates."""

OUTLYING = 6.0
"""Robust z (Iglewicz and Hoaglin 1993) from which a row is an outlier; they propose 3.5 for a look by hand."""

COMPARED = 5000
"""Most samples that are compared with each other."""

LABELS = ("label", "labels", "class", "target")
STATISTICS = ("mean", "std", "min", "max")
SHOWN = 10
"""Most duplicates and outliers that are listed."""


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
class Outlier:
    """A sample that stands out.

    Attributes:
        index: Of the sample.
        where: Where it is.
        array: Which array, or `""` for the whole sample.
        statistic: mean, std, min or max of the row, or `distance` to its nearest neighbour.
        value: Of the statistic.
        z: How many robust standard deviations it is from the median.
    """

    index: int
    where: str
    array: str
    statistic: str
    value: float
    z: float


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
            dict(sorted(counted.items(), key=_by_value)) if listed else {},
        )


def _by_value(item: tuple[str, int]) -> tuple[float, str]:
    try:
        return float(item[0]), ""
    except ValueError:
        return float("inf"), item[0]


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
    running: dict[str, _Running] = {}
    sha = hashlib.sha256()
    groups: dict[bytes, list[int]] = {}
    labels: list[str] = []
    compared = spread(len(samples), COMPARED)
    chosen = set(compared)
    raw: dict[str, list[np.ndarray]] = {}
    for index in range(len(samples)):
        sample = samples[index]
        rows = {n: np.asarray(sample[n]) for n in names if n in sample}
        if len(rows) < len(names):
            missing = next(n for n in names if n not in rows)
            raise DataError(
                f"{locate(samples, index)}: no array '{missing}'.", hint="every sample needs all arrays"
            )
        hash_sample(sha, sample)
        own = hashlib.sha256()
        hash_sample(own, {n: rows[n] for n in inputs})
        groups.setdefault(own.digest(), []).append(index)
        labels.append(rows[label].tobytes().hex() if label is not None else "")
        for name, row in rows.items():
            running.setdefault(name, _Running(row)).add(row)
        if index in chosen:
            numbers = {n: places(rows[n]) for n in inputs if rows[n].dtype.kind in "fiub"}
            for name, values in (numbers if encoders is None else encoders.run(sample)).items():
                raw.setdefault(name, []).append(values)
        step(index + 1)
    embeddings = (
        raw_embeddings({n: np.stack(v) for n, v in raw.items()})
        if encoders is None
        else encoder_embeddings(raw, encoders.variant)
    )
    duplicates = [tuple(g) for g in groups.values() if len(g) > 1]
    near, near_count, nearest = _near(embeddings, compared, duplicates)
    outliers = _outliers(samples, running, inputs, compared, nearest)
    return Survey(
        origin=origin,
        samples=len(samples),
        digest=sha.hexdigest(),
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


def _near(
    embeddings: Embeddings, indices: tuple[int, ...], duplicates: list[tuple[int, ...]]
) -> tuple[list[tuple[int, int, float]], int, np.ndarray]:
    """Returns the nearest pairs, how many pairs are near, and every sample's distance to its nearest neighbour.

    Equal samples are no near duplicates: they are listed as duplicates. A distance is the largest over the inputs.
    """
    count = len(indices)
    nearest = np.full(count, np.nan)
    if not embeddings.parts or count < 3:
        return [], 0, nearest
    equal = {index: number for number, group in enumerate(duplicates) for index in group}
    group_of = np.asarray([equal.get(index, -1 - position) for position, index in enumerate(indices)])
    pairs: list[tuple[int, int, float]] = []
    total = 0
    for start in range(0, count, 512):
        block = slice(start, min(start + 512, count))
        worst, mean = np.zeros((block.stop - start, count)), np.zeros((block.stop - start, count))
        for part in embeddings.parts.values():
            distance = _distances(part[block], part)
            worst = np.maximum(worst, distance)
            mean += distance / len(embeddings.parts)
        same = group_of[block][:, None] == group_of[None, :]
        mean[same], worst[same] = np.inf, np.inf
        lowest = mean.min(axis=1)
        nearest[block] = np.where(np.isfinite(lowest), lowest, np.nan)
        left, right = np.nonzero(worst < NEAR)
        left, right = left[left + start < right], right[left + start < right]
        total += len(left)
        closest = np.argsort(worst[left, right], kind="stable")[:SHOWN]
        for a, b in zip(left[closest], right[closest], strict=True):
            pairs.append((indices[a + start], indices[b], round(float(worst[a, b]), 4)))
        pairs = sorted(pairs, key=lambda pair: (pair[2], pair[0], pair[1]))[:SHOWN]
    return pairs, total, nearest


def _distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the distances of standardised rows, in units of the distance that two random ones have."""
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None, :] - 2 * (rows @ others.T)
    result: np.ndarray = np.sqrt(np.maximum(squares, 0) / (2 * rows.shape[1]))
    return result


def robust_z(values: np.ndarray) -> np.ndarray:
    """Returns how many robust standard deviations values are from their median; 0 for NaN.

    The modified z-score of Iglewicz and Hoaglin (1993): by the median absolute deviation, by the mean absolute
    deviation where more than half of the values are equal. There, a value that more than 1 % have is usual: 0.
    """
    known = values[np.isfinite(values)]
    if known.size < 10:
        return np.zeros_like(values)
    middle = np.median(known)
    apart = np.abs(known - middle)
    scale = np.median(apart) * 1.4826
    usual = np.zeros(len(values), bool)
    if not scale:
        scale = apart.mean() * 1.2533
        found, counts = np.unique(known, return_counts=True)
        usual = np.isin(values, found[counts > max(1, 0.01 * known.size)])
    with np.errstate(invalid="ignore"):
        z = np.where(usual, 0.0, (values - middle) / scale) if scale else np.zeros_like(values)
    return np.where(np.isfinite(z), z, 0.0)


def _outliers(
    samples: Samples,
    running: Mapping[str, _Running],
    inputs: list[str],
    compared: tuple[int, ...],
    nearest: np.ndarray,
) -> list[Outlier]:
    """Returns every sample and array that stands out, the worst statistic of each, the worst first."""
    found: dict[tuple[int, str], Outlier] = {}

    def look(array: str, statistic: str, values: np.ndarray, indices: tuple[int, ...]) -> None:
        scores = robust_z(values)
        if statistic == "distance":  # what is near is told as near
            scores = np.maximum(scores, 0)
        for position in np.flatnonzero(np.abs(scores) > OUTLYING):
            index = indices[int(position)]
            known = found.get((index, array))
            if known is None or abs(known.z) < abs(scores[position]):
                where, value = locate(samples, index), float(values[position])
                found[index, array] = Outlier(
                    index, where, array, statistic, value, round(float(scores[position]), 1)
                )

    for name in inputs:
        table = np.asarray(running[name].rows, np.float64)
        for column, statistic in enumerate(STATISTICS):
            look(name, statistic, table[:, column], tuple(range(len(table))))
    look("", "distance", nearest, compared)
    return sorted(found.values(), key=lambda o: (-abs(o.z), o.index, o.array))
