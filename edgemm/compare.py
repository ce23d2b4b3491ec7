"""How far two sets of outputs are apart: max-abs, cosine, SQNR, per output, with the worst sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgemm.tensors import Feed


@dataclass(slots=True)
class OutputParity:
    """Running comparison of one output over samples (constant memory)."""

    max_abs: float = 0.0
    worst_sample: int = 0
    min_cosine: float = 1.0
    signal: float = 0.0
    noise: float = 0.0
    samples: int = 0
    scale: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization-noise ratio in dB; infinite when equal, −infinite when not comparable."""
        if self.noise == 0.0:
            return math.inf
        if math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(max(self.signal, 1e-300) / self.noise)

    def add(self, reference: np.ndarray, other: np.ndarray, sample: int) -> None:
        """Adds one sample's output. Non-finite values count as equal only where both have the same one."""
        self.samples += 1
        if reference.shape != other.shape:
            self.max_abs, self.worst_sample, self.min_cosine = math.inf, sample, 0.0
            self.noise = math.inf
            return
        if reference.size == 0:
            return
        a = reference.astype(np.float64, copy=False).ravel()
        b = other.astype(np.float64, copy=False).ravel()
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        a, b = np.where(same & ~np.isfinite(a), 0.0, a), np.where(same & ~np.isfinite(b), 0.0, b)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(a - b)
        worst = float(np.max(difference)) if np.all(np.isfinite(difference)) else math.inf
        if worst > self.max_abs:
            self.max_abs, self.worst_sample = worst, sample
        if math.isinf(worst):
            self.min_cosine, self.noise = min(self.min_cosine, 0.0), math.inf
            return
        self.scale = max(self.scale, float(np.max(np.abs(a))))
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(a @ b) / norms if norms > 0 else (1.0 if worst == 0 else 0.0)
        self.min_cosine = min(self.min_cosine, min(cosine, 1.0))
        self.signal += float(a @ a)
        self.noise += float(((a - b) ** 2).sum())


@dataclass(slots=True)
class ParityReport:
    """Comparison of every output of two runs, filled sample by sample with `add`."""

    outputs: dict[str, OutputParity] = field(default_factory=dict)

    def add(self, reference: Feed, other: Mapping[str, np.ndarray], sample: int) -> None:
        """Adds one sample's outputs; an output that `other` lacks counts as infinitely far."""
        for name, value in reference.items():
            parity = self.outputs.setdefault(name, OutputParity())
            parity.add(value, other.get(name, np.empty((0, 0, 0, 0, 0, 0, 0))), sample)

    @property
    def max_abs(self) -> float:
        """Largest absolute difference over all outputs and samples."""
        return max((o.max_abs for o in self.outputs.values()), default=0.0)

    @property
    def cosine(self) -> float:
        """Smallest per-sample cosine similarity over all outputs."""
        return min((o.min_cosine for o in self.outputs.values()), default=1.0)

    def worst(self) -> tuple[str, OutputParity]:
        """Returns the output that differs most relative to its own scale."""
        return max(self.outputs.items(), key=lambda item: item[1].max_abs / max(item[1].scale, 1e-12))

    def within(self, absolute: float, relative: float) -> bool:
        """True when every output differs by at most `absolute + relative · max|output|`."""
        return all(o.max_abs <= absolute + relative * o.scale for o in self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        """Returns `{max_abs, cosine, samples, outputs: {...}}`."""
        return {
            "max_abs": self.max_abs,
            "cosine": self.cosine,
            "samples": max((o.samples for o in self.outputs.values()), default=0),
            "outputs": {
                name: {
                    "max_abs": o.max_abs,
                    "cosine": o.min_cosine,
                    "sqnr_db": None if math.isinf(o.sqnr_db) else round(o.sqnr_db, 2),
                    "worst_sample": o.worst_sample,
                }
                for name, o in self.outputs.items()
            },
        }
