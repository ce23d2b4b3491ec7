"""The result of calibration: a range for every tensor that may be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The range to represent (`low` ≤ `high`), chosen by a calibrator, and what was really seen."""

    low: float
    high: float
    seen_low: float
    seen_high: float


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges per tensor, with what they were made from.

    Attributes:
        ranges: Tensor name (of the stage's float graph) -> range.
        calibrator: Registry name of the calibrator.
        samples: How many samples were seen.
        graph_digest: sha256 of the float graphs that were run.
        data_digest: sha256 over the samples in order.
    """

    ranges: Mapping[str, TensorRange]
    calibrator: str
    samples: int
    graph_digest: str
    data_digest: str

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict for the bundle."""
        return {
            "calibrator": self.calibrator,
            "samples": self.samples,
            "graph_digest": self.graph_digest,
            "data_digest": self.data_digest,
            "ranges": {name: [r.low, r.high, r.seen_low, r.seen_high] for name, r in sorted(self.ranges.items())},
        }
