"""Trains the map from above of a camera and a lidar on synthetic scenes."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import camera_lidar as dataset
from recipes.models import camera_lidar as reference
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = dataset.load(0.05 if quick else 1.0)
    model = reference.build()
    reference.train(model, tensors(splits["train"]), epochs=2 if quick else 8, report=note)
    save_data(place, splits)
    save_program(model, first({n: splits["calib"][n] for n in reference.INPUTS}, 2), place / "model.pt2")
