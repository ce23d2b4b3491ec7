"""The result of calibration: a range for every tensor that may be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemm.quant.coverage import Coverage


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The range to represent (`low` ≤ `high`), chosen by a calibrator, and what was really seen.

    `by` names the calibrator that chose where several had a say (`auto`).
    """

    low: float
    high: float
    seen_low: float
    seen_high: float
    by: str = ""


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges per tensor, with what they were made from.

    Attributes:
        ranges: Tensor name (of the stage's float graph) -> range.
        calibrator: Registry name of the calibrator.
        samples: How many samples were seen.
        graph_digest: sha256 of the float graphs that were run.
        data_digest: sha256 over the samples in order; of merged shards, over the shards' digests in order.
        coverage: What the samples say about themselves; its warnings belong in front of the user.
    """

    ranges: Mapping[str, TensorRange]
    calibrator: str
    samples: int
    graph_digest: str
    data_digest: str
    coverage: Coverage | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict for the bundle."""
        return {
            "calibrator": self.calibrator,
            "samples": self.samples,
            "graph_digest": self.graph_digest,
            "data_digest": self.data_digest,
            "ranges": {name: _row(r) for name, r in sorted(self.ranges.items())},
            **({"coverage": self.coverage.to_json()} if self.coverage is not None else {}),
        }


def _row(found: TensorRange) -> list[Any]:
    return [found.low, found.high, found.seen_low, found.seen_high, *([found.by] if found.by else [])]
