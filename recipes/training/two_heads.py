"""What the models with two answers about an image and a review share in training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from recipes.datasets import image_text
from recipes.metrics import heads_accuracy
from recipes.models import cnn_rnn
from recipes.training.pairs import predict, save_pairs
from recipes.training.writing import note, save_also, tensors


def make_two_heads(model: nn.Module, place: Path, *, quick: bool, data_root: Path | None) -> None:
    """Trains `model` and writes `model.pt2`, `calib.npz`, `eval.npz` and `tokenizer.json` to `place`."""
    sizes = image_text.QUICK if quick else image_text.Sizes()
    splits = image_text.load(data_root, sizes)
    cnn_rnn.train(model, tensors(splits["train"]), epochs=1 if quick else 3, report=note)

    def score(without: str) -> float:
        return heads_accuracy(predict(model, splits["eval"], without), splits["eval"]["label"])

    note(f"mean accuracy {score(''):.2%}")
    save_also(place, {"image alone": score("text"), "text alone": score("image")})
    save_pairs(model, splits, place, image_text.tokenizer(data_root, sizes))
