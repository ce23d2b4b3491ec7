"""Trains the image and the table of patients with a biopsy."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import medical as dataset
from recipes.models import medical
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

INPUTS = ("image", "table", "given")
ALSO = ("metrics.py:f1_of_logit", "metrics.py:calibration")


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = dataset.load(dataset.Options(images=1)) if quick else dataset.load()
    model = medical.build()
    medical.train(model, tensors(splits["train"]), epochs=4 if quick else 40, report=note)
    save_data(place, splits)
    save_program(model, first({name: splits["calib"][name] for name in INPUTS}, 2), place / "model.pt2")
