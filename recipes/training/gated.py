"""Trains the gated unit on digits of which one modality may be noise."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import noisy_digits as dataset
from recipes.models import gated
from recipes.models.saving import save_program
from recipes.training.digits import QUICK
from recipes.training.writing import first, note, save_data, tensors

ALSO = (
    "metrics.py:accuracy_clean",
    "metrics.py:accuracy_noise_for_image",
    "metrics.py:accuracy_noise_for_audio",
)


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = dataset.load(QUICK) if quick else dataset.load()
    model = gated.build()
    gated.train(model, tensors(splits["train"]), epochs=1 if quick else 6, report=note)
    save_data(place, splits)
    save_program(model, first({n: splits["calib"][n] for n in ("image", "audio")}, 2), place / "model.pt2")
