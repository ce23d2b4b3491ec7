"""Trains the audio-visual digits with a recurrent audio encoder and a gate."""

from __future__ import annotations

from pathlib import Path

from recipes.models import av_gru
from recipes.training.digits import make_digits


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `model.pt`, `calib.npz` and `eval.npz` to `place`."""
    make_digits(av_gru.build(), place, rate=3e-3, epochs=6, quick=quick)
