"""Trains the joint Transformer of patches and words."""

from __future__ import annotations

from pathlib import Path

from recipes.models import bilinear, transformer_fusion
from recipes.training.pairs import make_pairs


def make(place: Path, *, quick: bool = False, data_root: Path | None = None) -> None:
    """Writes `model.pt2`, `calib.npz`, `eval.npz` and `tokenizer.json` to `place`.

    Args:
        place: Folder to write to.
        quick: A few steps on a few samples.
        data_root: Folder with the user's `cifar-10-batches-bin` and `aclImdb`, either or both.
    """
    make_pairs(transformer_fusion.build(), bilinear.train, place, epochs=3, quick=quick, data_root=data_root)
