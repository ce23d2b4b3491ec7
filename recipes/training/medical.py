"""Trains the image and the table of patients with a biopsy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.datasets import medical as dataset
from recipes.datasets.cache import Arrays
from recipes.models import medical
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

INPUTS = ("image", "table", "given")
ALSO = ("metrics.py:f1_of_logit", "metrics.py:calibration")


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2` to `place`, and `calib.npz` and `eval.npz` with images as a camera gives them."""
    splits = dataset.load(dataset.Options(images=1)) if quick else dataset.load()
    model = medical.build()
    medical.train(model, tensors(preprocessed(splits["train"])), epochs=4 if quick else 40, report=note)
    save_data(place, splits)
    calib = preprocessed(splits["calib"])
    save_program(model, first({name: calib[name] for name in INPUTS}, 2), place / "model.pt2")


def preprocessed(arrays: Arrays) -> Arrays:
    """Returns samples as the model takes them: what `preprocess` in `recipes/medical.yaml` says, for training."""
    image = (arrays["image"].transpose(0, 3, 1, 2) / 255 - 0.6) / 0.3
    return arrays | {"image": image.astype(np.float32)}
