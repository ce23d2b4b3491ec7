"""Tensors that a plan multiplied per channel: scale migration moves factors into weights, the answers stay."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgemm.bundle import Manifest
from edgemm.quant.repairs import EXACT, REPAIRS

_AXES = (1, -1)


def moves_factors(bundle: Path, manifest: Manifest, target: str) -> bool:
    """Returns whether the plan of a bundle's variants for `target` multiplied tensors by factors per channel."""
    plans = [n for n in manifest.files if n.startswith(f"plans/{target}-")]
    decisions = [d for name in plans for d in json.loads((bundle / name).read_bytes())["decisions"]]
    return any(r in EXACT for d in decisions for r in d.get("options", {}).get(REPAIRS, ()))


@dataclass(slots=True)
class Gains:
    """Least-squares gain per channel from one tensor to another, and what it leaves over (constant memory).

    The channels are those of axis 1 or of the last one: the axis whose gains leave less.
    """

    _sums: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Adds one sample's values, axis 0 its batch. What has no channels or another shape has no gains."""
        if reference.shape != other.shape or reference.ndim < 2:
            self._sums = {axis: np.full((3, 1), math.nan) for axis in _AXES}
            return
        a, b = reference.astype(np.float64), other.astype(np.float64)
        for axis in _AXES:
            others = tuple(i for i in range(a.ndim) if i != axis % a.ndim)
            sums = np.stack([np.sum(x * y, axis=others) for x, y in ((a, a), (a, b), (b, b))])
            before = self._sums.get(axis, np.zeros_like(sums))
            self._sums[axis] = before + sums if before.shape == sums.shape else np.full((3, 1), math.nan)

    @property
    def sqnr_db(self) -> float:
        """SQNR in dB of the other tensor against the reference times its gains; −infinite where there are none."""
        return max((_sqnr(*sums) for sums in self._sums.values()), default=-math.inf)


def _sqnr(aa: np.ndarray, ab: np.ndarray, bb: np.ndarray) -> float:
    if not np.isfinite(aa + ab + bb).all() or (ab < 0).any():
        return -math.inf
    explained = np.divide(ab**2, aa, out=np.zeros_like(ab), where=aa > 0)
    # per channel, so that one with a large gain does not hide the noise of the others
    share = np.divide(bb - explained, bb, out=np.zeros_like(bb), where=bb > 0)
    noise = float(np.mean(np.maximum(share, 0.0)))
    return math.inf if noise == 0 else -10 * math.log10(noise)
