"""A small set of samples that stands for a large one, and the card that says where it is from.

Chosen by farthest-point traversal: each next sample is the one farthest from all chosen so far. The largest
distance from any sample to a chosen one is at most twice the best possible (Gonzalez 1985, "Clustering to minimize
the maximum intercluster distance"). Labels keep their shares.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.data.embeddings import Embeddings, Encoders, comparable, gathered
from edgemm.data.samples import Samples, hash_sample, locate, names_of, origin_of
from edgemm.data.survey import by_value, find_label
from edgemm.errors import DataError


@dataclass(frozen=True, slots=True)
class Choice:
    """A subset.

    Attributes:
        indices: Chosen samples, ascending.
        radius: Largest distance from a sample to a chosen one of its label; two random samples are 1 apart.
        random_radius: The same of as many samples drawn at random.
    """

    indices: tuple[int, ...]
    radius: float
    random_radius: float


def k_centre(points: np.ndarray, count: int, first: int) -> list[int]:
    """Returns `count` rows of `points` [N,D], from `first` on each the farthest from those before."""
    chosen = [first]
    distance = ((points - points[first]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(points)):
        farthest = int(distance.argmax())
        if distance[farthest] <= 0:  # only copies of chosen ones are left
            left = np.setdiff1d(np.arange(len(points)), chosen)
            return chosen + [int(i) for i in left[: count - len(chosen)]]
        chosen.append(farthest)
        distance = np.minimum(distance, ((points - points[farthest]) ** 2).sum(axis=1))
    return chosen


def quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Returns how many samples of each label are chosen: its share, rounded by largest remainder, at least 1.

    Where there are more labels than `count`, the largest ones get one each.
    """
    if len(sizes) >= count:
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:count]
        return {name: int(name in largest) for name in sizes}
    total = sum(sizes.values())
    exact = {name: size * min(count, total) / total for name, size in sizes.items()}
    found = {name: max(1, int(share)) for name, share in exact.items()}
    while sum(found.values()) < min(count, total):
        found[max((n for n in sizes if found[n] < sizes[n]), key=lambda n: exact[n] - found[n])] += 1
    while sum(found.values()) > count:
        found[min((n for n in sizes if found[n] > 1), key=lambda n: exact[n] - found[n])] -= 1
    return found


def choose(points: np.ndarray, labels: Sequence[str], count: int, seed: int) -> Choice:
    """Returns the samples that stand for all.

    Args:
        points: [N,D] from `Embeddings.joined`.
        labels: One for each row; all equal where there are none.
        count: How many; all where there are fewer.
        seed: Of the first sample of each label.
    """
    random = np.random.default_rng(seed)
    names = np.asarray(labels)
    groups = {str(name): np.flatnonzero(names == name) for name in sorted(set(labels))}
    wanted = quotas({name: len(rows) for name, rows in groups.items()}, count)
    chosen: list[int] = []
    radius = random_radius = 0.0
    for name, rows in groups.items():
        if not wanted[name]:
            continue
        own = points[rows].astype(np.float64)
        picked = k_centre(own, wanted[name], int(random.integers(len(rows))))
        chosen += [int(rows[i]) for i in picked]
        radius = max(radius, _radius(own, picked))
        drawn = random.choice(len(rows), len(picked), replace=False)
        random_radius = max(random_radius, _radius(own, [int(i) for i in drawn]))
    return Choice(tuple(sorted(chosen)), radius, random_radius)


def _read(
    samples: Samples, label: str | None, encoders: Encoders | None, sha: hashlib._Hash, step: Callable[[int], Any]
) -> tuple[list[int], list[str], Embeddings]:
    """Returns the finite samples, their labels and embeddings; `sha` sees all samples."""
    inputs = [n for n in names_of(samples) if n != label]
    kept: list[int] = []
    labels: list[str] = []
    rows: dict[str, list[np.ndarray]] = {}
    for index in range(len(samples)):
        sample = samples[index]
        hash_sample(sha, sample)
        step(index + 1)
        numbers = {n: a for n in inputs if (a := np.asarray(sample[n])).dtype.kind in "fiub"}
        if not all(np.isfinite(a).all() for a in numbers.values() if a.dtype.kind == "f"):
            continue
        kept.append(index)
        value = np.asarray(sample[label]) if label is not None else np.asarray(0)
        labels.append(str(value.reshape(-1)[0]) if value.size == 1 and value.dtype.kind in "iubU" else "")
        for name, values in comparable(sample, numbers, encoders).items():
            rows.setdefault(name, []).append(values)
    if not kept:
        raise DataError(
            f"{origin_of(samples)}: no samples to choose from ({len(samples)} there).", hint="all have NaN or Inf"
        )
    return kept, labels, gathered(rows, encoders)


def choose_from(
    samples: Samples,
    count: int,
    *,
    label: str | None = None,
    seed: int = 0,
    encoders: Encoders | None = None,
    step: Callable[[int], Any] = lambda done: None,
) -> tuple[Choice, dict[str, Any]]:
    """Returns the samples that stand for all of `samples`, and what a card says of the choice.

    Samples with NaN or Inf in an input are not chosen. Labels, single whole numbers or texts, keep their shares
    where there are no more of them than `count`, or than a tenth of the samples.

    Args:
        samples: From `open_samples`.
        count: How many.
        label: Array of the labels; None: one whose name says so.
        seed: Of the first sample of each label.
        encoders: Samples are compared by what these make of them; None: by raw values.
        step: Told how many samples are read.

    Raises:
        DataError: No samples, or one that does not fit.
    """
    label = find_label(samples, label)
    sha = hashlib.sha256()
    kept, labels, found = _read(samples, label, encoders, sha, step)
    stratify = label is not None and any(labels) and len(set(labels)) <= max(count, len(kept) // 10)
    choice = choose(
        found.joined() if found.parts else np.zeros((len(kept), 1)),
        labels if stratify else [""] * len(kept),
        count,
        seed,
    )
    counts = Counter(labels[i] for i in choice.indices) if stratify else Counter()
    facts = {
        "source_sha256": sha.hexdigest(),
        "samples": len(choice.indices),
        "of": len(samples),
        "left_out": len(samples) - len(kept),
        "method": "k-centre greedy (Gonzalez 1985)" + (f", stratified by {label}" if stratify else ""),
        "by": found.by,
        "seed": seed,
        "radius": round(choice.radius, 4),
        "random_radius": round(choice.random_radius, 4),
        "labels": {name: counts[name] for name in sorted(counts, key=by_value)},
    }
    return Choice(tuple(kept[i] for i in choice.indices), choice.radius, choice.random_radius), facts


def _radius(points: np.ndarray, chosen: Sequence[int]) -> float:
    nearest = np.full(len(points), np.inf)
    for index in chosen:
        nearest = np.minimum(nearest, ((points - points[index]) ** 2).sum(axis=1))
    return float(np.sqrt(nearest.max())) if len(points) else 0.0


def gather(samples: Samples, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns name -> [len(indices), ...].

    Raises:
        DataError: Rows of one array differ in shape, so that they are not one array.
    """
    rows = [samples[index] for index in indices]
    arrays = {}
    for name in names_of(samples):
        own = [np.asarray(row[name]) for row in rows]
        odd = next((i for i, row in enumerate(own) if row.shape != own[0].shape), None)
        if odd is not None:
            raise DataError(
                f"{locate(samples, indices[odd])}: array '{name}' has the shape {own[odd].shape}, the first "
                f"chosen one has {own[0].shape}: they are not one array.",
                hint="cut or fill them in a description file: `length` for audio and points, `size` for images",
            )
        arrays[name] = np.stack(own)
    return arrays


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns an uncompressed `.npz` file; equal arrays give equal bytes on every machine."""
    buffer = io.BytesIO()
    np.savez(buffer, **{n: np.ascontiguousarray(a) for n, a in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def card(arrays: Mapping[str, np.ndarray], content: bytes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a card says of a file of samples: `facts`, then what can be read off the arrays.

    Args:
        arrays: What is in the file.
        content: The file.
        facts: Origin, licence, how chosen, seed.
    """
    return {
        **facts,
        "arrays": {
            name: {"dtype": array.dtype.name, "shape": [int(n) for n in array.shape]}
            for name, array in arrays.items()
        },
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
