"""Trains dialogues about a picture with digits; what its recipe reads is one word per sample, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.datasets import dialogues as dataset
from recipes.datasets.cache import save_arrays
from recipes.models import caption_dialogue as reference
from recipes.models.saving import save_program
from recipes.training.writing import note, save_data, tensors

DIALOGUES = {"calib": 40, "eval": 60}
"""How many are fed word by word to calibrate and to evaluate."""


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz`, `eval.npz` and, for greedy decoding, `dialogues.npz` to `place`."""
    splits = dataset.load(0.05 if quick else 1.0)
    model = reference.build()
    reference.train(model, tensors(splits["train"]), epochs=2 if quick else 9, report=note)
    save_data(place, {s: dataset.steps(splits[s], 5 if quick else count) for s, count in DIALOGUES.items()})
    save_arrays(place / "dialogues.npz", splits["eval"])
    sample = {
        "image": splits["calib"]["image"][:2],
        "token": splits["calib"]["tokens"][:2, :1],
        "cache": np.zeros((2, 2 * reference.LAYERS, reference.LENGTH, reference.WIDTH), np.float32),
        "position": np.zeros((2, 1), np.float32),
    }
    save_program(model, sample, place / "model.pt2")
