"""Trains the weighted sum of an image and a review."""

from __future__ import annotations

from pathlib import Path

from recipes.models import bilinear, weighted_sum
from recipes.training.pairs import make_pairs
from recipes.training.writing import note


def make(place: Path, *, quick: bool = False, data_root: Path | None = None) -> None:
    """Writes `model.pt2`, `calib.npz`, `eval.npz` and `tokenizer.json` to `place`.

    Args:
        place: Folder to write to.
        quick: A few steps on a few samples.
        data_root: Folder with the user's `cifar-10-batches-bin` and `aclImdb`, either or both.
    """
    model = weighted_sum.build()
    make_pairs(model, bilinear.train, place, epochs=3, quick=quick, data_root=data_root)
    text, image = model.weights.tolist()
    note(f"weights: {text:.2f} of the text, {image:.2f} of the image")
