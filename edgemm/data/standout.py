"""Samples that stand out: nearly equal to another, or far from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.data.embeddings import Embeddings
from edgemm.data.samples import Samples, locate

NEAR = 0.05
"""Samples closer than this share of the distance of two random ones, in every input, are near duplicates."""

OUTLYING = 6.0
"""Robust z (Iglewicz and Hoaglin 1993) from which a row is an outlier; they propose 3.5 for a look by hand."""

STATISTICS = ("mean", "std", "min", "max")
SHOWN = 10
"""Most duplicates and outliers that are listed."""


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


def near_pairs(
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


def find_outliers(
    samples: Samples,
    rows: Mapping[str, Sequence[Sequence[float]]],
    compared: tuple[int, ...],
    nearest: np.ndarray,
) -> list[Outlier]:
    """Returns every sample and array that stands out, the worst statistic of each, the worst first.

    Args:
        samples: Where they are.
        rows: Array -> the `STATISTICS` of every row.
        compared: Samples whose neighbours were looked for.
        nearest: Their distances to the nearest neighbour, from `near_pairs`.
    """
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

    for name, values in rows.items():
        table = np.asarray(values, np.float64)
        for column, statistic in enumerate(STATISTICS):
            look(name, statistic, table[:, column], tuple(range(len(table))))
    look("", "distance", nearest, compared)
    return sorted(found.values(), key=lambda o: (-abs(o.z), o.index, o.array))
