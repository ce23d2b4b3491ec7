"""Trains what says whether a text names the digit that an image shows, from the features of both."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import number_pairs
from recipes.models import feature_concat
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

ALSO = ("f1_macro", "auroc")


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = number_pairs.load()
    if quick:
        splits = {split: arrays if split == "train" else first(arrays, 64) for split, arrays in splits.items()}
    model = feature_concat.build()
    feature_concat.train(model, tensors(splits["train"]), epochs=1 if quick else 8, report=note)
    note(f"accuracy {feature_concat.accuracy(model, tensors(splits['eval'])):.2%}")
    save_data(place, splits)
    save_program(model, {n: splits["calib"][n] for n in ("text", "image")}, place / "model.pt2")
