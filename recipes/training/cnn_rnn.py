"""Trains the CNN and the RNN that answer what an image shows and how a review judges."""

from __future__ import annotations

from pathlib import Path

from recipes.models import cnn_rnn
from recipes.training.two_heads import make_two_heads


def make(place: Path, *, quick: bool = False, data_root: Path | None = None) -> None:
    """Writes `model.pt2`, `calib.npz`, `eval.npz` and `tokenizer.json` to `place`.

    Args:
        place: Folder to write to.
        quick: A few steps on a few samples.
        data_root: Folder with the user's `cifar-10-batches-bin` and `aclImdb`, either or both.
    """
    make_two_heads(cnn_rnn.build(), place, quick=quick, data_root=data_root)
