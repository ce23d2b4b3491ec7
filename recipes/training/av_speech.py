"""Trains spoken digits with a picture: CNN-GRU and CNN, joined by concatenation."""

from __future__ import annotations

from pathlib import Path

from recipes.models import av_speech
from recipes.training.digits import make_digits


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `model.pt`, `calib.npz` and `eval.npz` to `place`."""
    make_digits(av_speech.build(), place, rate=3e-3, epochs=6, quick=quick)
