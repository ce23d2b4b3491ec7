"""Trains the importance of a film's frames."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import shots as dataset
from recipes.datasets.cache import Arrays
from recipes.models import video_summary
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

QUICK = dataset.Options(films=(128, 32, 48), images=(256, 128, 128))


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = dataset.load(QUICK) if quick else dataset.load()
    model = video_summary.build()
    video_summary.train(model, tensors(splits["train"]), epochs=8 if quick else 24, report=note)
    save_data(place, {split: _without_digits(arrays) for split, arrays in splits.items()})
    inputs = {name: splits["calib"][name] for name in ("frames", "audio")}
    save_program(model, first(inputs, 2), place / "model.pt2")


def _without_digits(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if name != "digit"}
