"""What the three models of audio-visual digits share in training: the same pairs, the same schedule."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from recipes.datasets import av_digits as dataset
from recipes.models import av_digits
from recipes.models.saving import save_program, save_weights
from recipes.training.writing import first, note, save_data, tensors

QUICK = dataset.Options(pairs=(256, 64, 64), images=(256, 64, 64))


def make_digits(model: nn.Module, place: Path, *, rate: float, epochs: int, quick: bool) -> None:
    """Trains `model` and writes `model.pt2`, `model.pt`, `calib.npz` and `eval.npz` to `place`."""
    splits = dataset.load(QUICK) if quick else dataset.load()
    av_digits.train(model, tensors(splits["train"]), rate=rate, epochs=1 if quick else epochs, report=note)
    for without in ("", "image", "audio"):
        score = av_digits.accuracy(model, tensors(splits["eval"]), without=without)
        note(f"accuracy {score:.2%}" + (f" without {without}" if without else ""))
    save_data(place, splits)
    save_program(model, first({n: splits["calib"][n] for n in ("image", "audio")}, 2), place / "model.pt2")
    save_weights(model, place / "model.pt")
