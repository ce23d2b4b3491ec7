"""What two samples are compared by: values at fixed places, or what a bundle's encoders make of them.

Raw values at places spread evenly over an array tell equal and nearly equal recordings; what an encoder gives at
its cut tells samples that mean the same to the model. Both come standardised and weigh every modality alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemm.data.samples import Sample, make_feed
from edgemm.errors import DataError

PLACES = 128
"""Values of an array that samples are compared by; embeddings that are longer are projected to so many."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Rows that samples are compared by.

    Attributes:
        parts: Array or encoder -> [samples, values], standardised over the samples; constant values are left out.
        by: What they are, for reports.
    """

    parts: dict[str, np.ndarray]
    by: str

    def joined(self) -> np.ndarray:
        """Returns [samples, values] in which a typical distance is 1, and every part weighs alike."""
        kept = [part / np.sqrt(2 * part.shape[1] * len(self.parts)) for part in self.parts.values()]
        count = len(next(iter(self.parts.values()))) if self.parts else 0
        return np.concatenate(kept, axis=1) if kept else np.zeros((count, 0), np.float32)


def places(row: np.ndarray) -> np.ndarray:
    """Returns `PLACES` values of an array at evenly spread places of its flat form, float32, NaN and Inf as 0."""
    flat = np.asarray(row).reshape(-1)
    if not flat.size:
        return np.zeros(PLACES, np.float32)
    at = np.linspace(0, flat.size - 1, min(PLACES, flat.size)).round().astype(np.int64)
    values = np.zeros(PLACES, np.float32)
    with np.errstate(over="ignore"):
        values[: len(at)] = np.nan_to_num(flat[at].astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return values


def standardised(rows: np.ndarray) -> np.ndarray:
    """Returns [samples, values] with mean 0 and standard deviation 1, without the values that never change.

    The deviation is that between the 1st and the 99th percentile, so that one extreme sample does not make all
    others look alike; what is beyond ten of it counts as ten.
    """
    inner = np.clip(rows, *np.percentile(rows, (1, 99), axis=0)).astype(np.float64)
    deviation = np.where(inner.std(axis=0) > 0, inner.std(axis=0), rows.std(axis=0, dtype=np.float64))
    kept = deviation > 1e-6 * np.maximum(np.abs(rows).max(axis=0, initial=0.0), 1e-12)
    part: np.ndarray = (rows[:, kept] - inner[:, kept].mean(axis=0)) / deviation[kept]
    return part.clip(-10, 10).astype(np.float32)


def raw_embeddings(rows: dict[str, np.ndarray]) -> Embeddings:
    """Returns embeddings of `places` of every array, [samples, PLACES] each."""
    parts = {name: standardised(values) for name, values in rows.items()}
    return Embeddings({n: p for n, p in parts.items() if p.shape[1]}, "raw values")


class Encoders:
    """The encoders of a bundle, each an engine of its own that runs on this machine's CPU."""

    def __init__(self, bundle: Path, seed: int = 0) -> None:
        """Opens them; the bundle's files are verified first.

        Raises:
            DataError: No variant of the bundle has its encoders as engines of their own.
            EdgemmError: No bundle, or one whose engines do not open.
        """
        from edgemm.bundle import read_manifest, verify
        from edgemm.runtime import open_session

        manifest = read_manifest(bundle)
        verify(bundle, manifest)
        encoders = [s.name for s in manifest.stages if s.role == "encoder"]
        found: dict[str, str] = {}
        for variant in sorted(manifest.shipped, key=lambda v: (v.target != "cpu", "fp32" not in v.name)):
            alone = {e.stages[0]: e.file for e in variant.engines if len(e.stages) == 1}
            if encoders and all(alone.get(name, "").endswith(".onnx") for name in encoders):
                found = {name: alone[name] for name in encoders}
                self.variant = variant.name
                break
        if not found:
            raise DataError(
                f"{bundle}: no variant has its encoders as engines of their own.",
                hint="convert with --layout staged (--precision fp32 is enough), or leave --model out",
            )
        self._stack = ExitStack()
        self._sessions = {n: self._stack.enter_context(open_session(bundle / file)) for n, file in found.items()}
        self._seed = seed
        self._projections: dict[str, np.ndarray] = {}

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self, sample: Sample) -> dict[str, np.ndarray]:
        """Returns encoder -> its outputs for one sample, flat, at most `PLACES` values.

        Raises:
            DataError: The sample does not fit the model.
        """
        given = {}
        for name, session in self._sessions.items():
            outputs = session.run(make_feed(session.io, [sample]))
            flat = np.concatenate([np.asarray(o, np.float32).reshape(-1) for o in outputs.values()])
            given[name] = self._projected(name, np.nan_to_num(flat))
        return given

    def _projected(self, name: str, flat: np.ndarray) -> np.ndarray:
        """Returns `flat`, shortened by a random projection: it keeps distances (Johnson, Lindenstrauss 1984)."""
        if flat.size <= PLACES:
            return flat
        if flat.size > 64 * PLACES:  # a projection of so many would take more memory than the samples
            flat = flat[np.linspace(0, flat.size - 1, 64 * PLACES).round().astype(np.int64)]
        known = self._projections.get(name)
        if known is None or len(known) != flat.size:
            random = np.random.default_rng(self._seed)
            known = random.standard_normal((flat.size, PLACES)).astype(np.float32) / np.sqrt(np.float32(PLACES))
            self._projections[name] = known
        projected: np.ndarray = flat @ known
        return projected


def comparable(sample: Sample, names: Iterable[str], encoders: Encoders | None) -> dict[str, np.ndarray]:
    """Returns what a sample is compared by: what `encoders` make of it, else `places` of its numbers.

    Args:
        sample: With all arrays.
        names: Arrays that count without encoders; texts do not.
        encoders: None compares raw values.
    """
    if encoders is not None:
        return encoders.run(sample)
    return {name: places(row) for name in names if (row := np.asarray(sample[name])).dtype.kind in "fiub"}


def gathered(rows: dict[str, list[np.ndarray]], encoders: Encoders | None) -> Embeddings:
    """Returns embeddings of `places` of arrays, or of what `encoders` gave; shorter rows are filled with zeros.

    Args:
        rows: Array or encoder -> one row for each sample.
        encoders: What gave the rows; None: they are raw values.
    """
    if encoders is None:
        return raw_embeddings({name: np.stack(values) for name, values in rows.items()})
    parts = {}
    for name, values in rows.items():
        table = np.zeros((len(values), max(v.size for v in values)), np.float32)
        for index, value in enumerate(values):
            table[index, : value.size] = value
        parts[name] = standardised(table)
    return Embeddings({n: p for n, p in parts.items() if p.shape[1]}, f"encoder outputs of {encoders.variant}")
