"""Trains what joins a digit's image and a tweet; the published text encoder stays as it is."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import reviews
from recipes.models import review_image
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

INPUTS = ("image", "input_ids", "attention_mask")


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = reviews.load(review_image.minilm_folder() / "tokenizer.json")
    if quick:
        splits = {split: first(arrays, 64) for split, arrays in splits.items()}
    model = review_image.build()
    review_image.train(model, tensors(splits["train"]), epochs=1 if quick else 6, report=note)
    save_data(place, splits)
    save_program(model, {n: splits["calib"][n] for n in INPUTS}, place / "model.pt2")
