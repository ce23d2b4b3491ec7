"""Trains the activities from a wrist on BasicMotions; its TRAIN file calibrates, too, there being no third."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import imu as dataset
from recipes.models import imu
from recipes.models.saving import save_program
from recipes.training.writing import save_data, tensors


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = {"calib": dataset.load("TRAIN"), "eval": dataset.load("TEST")}
    model = imu.build()
    imu.train(model, tensors(splits["calib"]), epochs=2 if quick else 60)
    save_data(place, splits)
    save_program(model, {n: splits["calib"][n] for n in ("accel", "gyro")}, place / "model.pt2")
