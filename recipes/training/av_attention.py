"""Trains the audio-visual digits joined by cross-attention."""

from __future__ import annotations

from pathlib import Path

from recipes.models import av_attention
from recipes.training.digits import make_digits


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `model.pt`, `calib.npz` and `eval.npz` to `place`."""
    make_digits(av_attention.build(), place, rate=2e-3, epochs=6, quick=quick)
