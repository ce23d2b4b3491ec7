"""What calibration has observed so far: parts that were calibrated apart add up to what one run would give.

    first = observe(stages, io, samples[:500], "percentile")     # on one machine
    first.save("first.npz")
    second = observe(stages, io, samples[500:], "percentile")    # on another
    table = merge([load_partial("first.npz"), second]).table()

Counts are integers and sums are exact fractions, so the ranges are those of one run over all samples, bit for bit
where the kernels give the same bits for the batches of the parts (parts of whole batches do).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import QuantizationError
from edgemm.quant.calibrators import Calibrator, calibrator_class
from edgemm.quant.coverage import Coverage, TensorCoverage
from edgemm.quant.table import CalibrationTable

_FORMAT = 1
_SCALARS = tuple(f.name for f in fields(TensorCoverage) if f.name not in ("lows", "highs"))


@dataclass(slots=True)
class Partial:
    """Observations of some of the samples.

    Attributes:
        calibrator: Name of the calibrator.
        watchers: `stage:tensor` -> its calibrator.
        tensors: `stage:tensor` -> its coverage.
        modalities: `stage:tensor` -> the modalities whose values reach it.
        samples: How many samples were seen.
        graph_digest: sha256 of the float graphs.
        data_digests: One sha256 per merged part, over its samples in order.
    """

    calibrator: str
    watchers: dict[str, Calibrator[Any]]
    tensors: dict[str, TensorCoverage]
    modalities: Mapping[str, tuple[str, ...]]
    samples: int
    graph_digest: str
    data_digests: tuple[str, ...]

    def table(self) -> CalibrationTable:
        """Returns the ranges that the calibrators choose, with the coverage."""
        ranges = {k: found for k in sorted(self.watchers) if (found := self.watchers[k].range()) is not None}
        digests = self.data_digests
        data = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        coverage = Coverage(self.samples, self.tensors, self.modalities)
        return CalibrationTable(ranges, self.calibrator, self.samples, self.graph_digest, data, coverage)

    def add(self, other: Partial) -> None:
        """Adds what `other` has observed; `other` is used up.

        Raises:
            QuantizationError: It was made with another model or calibrator.
        """
        for what, mine, yours in (
            ("calibrator", self.calibrator, other.calibrator),
            ("model (graph digest)", self.graph_digest, other.graph_digest),
        ):
            if mine != yours:
                raise QuantizationError(
                    f"parts of a calibration differ in their {what}: got '{yours[:16]}', expected '{mine[:16]}'.",
                    hint="calibrate every part with the same exported model and the same calibrator",
                )
        for key, watcher in other.watchers.items():
            if key in self.watchers:
                self.watchers[key].merge(watcher)
                self.tensors[key].merge(other.tensors[key])
            else:
                self.watchers[key], self.tensors[key] = watcher, other.tensors[key]
        self.modalities = {**self.modalities, **other.modalities}
        self.samples += other.samples
        self.data_digests += other.data_digests

    def save(self, path: str | Path) -> None:
        """Writes everything to one `.npz` file, without pickles."""
        meta = {
            "format": _FORMAT,
            "calibrator": self.calibrator,
            "samples": self.samples,
            "graph_digest": self.graph_digest,
            "data_digests": self.data_digests,
            "modalities": {k: list(v) for k, v in self.modalities.items()},
            "tensors": {k: {n: getattr(t, n) for n in _SCALARS} for k, t in self.tensors.items()},
        }
        arrays = {"meta": np.array(json.dumps(meta))}
        for number, (key, watcher) in enumerate(self.watchers.items()):
            arrays |= {f"{number}/{name}": array for name, array in watcher.state().items()}
            arrays[f"{number}/key"] = np.array(key)
            tensor = self.tensors[key]
            if tensor.lows is not None and tensor.highs is not None:
                arrays |= {f"{number}/lows": tensor.lows, f"{number}/highs": tensor.highs}
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def load_partial(path: str | Path) -> Partial:
    """Returns what `Partial.save` wrote.

    Raises:
        QuantizationError: The file is none of these, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            if meta["format"] != _FORMAT:
                raise ValueError(f"format {meta['format']}, expected {_FORMAT}")
            return _read(meta, file)
    except (OSError, KeyError, ValueError) as error:
        raise QuantizationError(
            f"{path}: no part of a calibration that can be read: {error}.",
            hint="give a file that Partial.save wrote, with the same version of edgemm",
        ) from error


def merge(parts: Iterable[Partial]) -> Partial:
    """Returns the sum of `parts`, in any order the same ranges; the parts are used up.

    A model with a state begins each part with an empty state: cut the samples where a recording ends.

    Raises:
        QuantizationError: No parts, or parts of different models or calibrators.
    """
    total: Partial | None = None
    for part in parts:
        if total is None:
            total = part
        else:
            total.add(part)
    if total is None:
        raise QuantizationError("no parts to merge.", hint="give at least one part of a calibration")
    return total


def _read(meta: Mapping[str, Any], file: Mapping[str, np.ndarray]) -> Partial:
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name in file:
        number, slash, rest = name.partition("/")
        if slash:
            groups.setdefault(number, {})[rest] = file[name]
    make = calibrator_class(meta["calibrator"])
    watchers, tensors = {}, {}
    for state in groups.values():
        key = str(state["key"])
        watchers[key] = make()
        watchers[key].restore(state)
        tensors[key] = TensorCoverage(**meta["tensors"][key], lows=state.get("lows"), highs=state.get("highs"))
    return Partial(
        meta["calibrator"],
        watchers,
        tensors,
        {k: tuple(v) for k, v in meta["modalities"].items()},
        meta["samples"],
        meta["graph_digest"],
        tuple(meta["data_digests"]),
    )
