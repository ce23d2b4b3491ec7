"""Trains the two experts on the mood of a message, and the weights of their decisions."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import tweet_speech
from recipes.datasets.cache import replacing
from recipes.models import sentiment
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

ALSO = ("f1_macro", "metrics.py:text_alone", "metrics.py:prosody_alone")


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz`, `eval.npz` and `tokenizer.json` to `place`."""
    sizes = tweet_speech.QUICK if quick else tweet_speech.Sizes()
    splits = tweet_speech.load(sizes)
    model = sentiment.build()
    sentiment.train(model, tensors(splits["train"]), epochs=2 if quick else 6, report=note)
    save_data(place, splits)
    save_program(model, first({n: splits["calib"][n] for n in ("text", "prosody")}, 2), place / "model.pt2")
    with replacing(place / "tokenizer.json") as temporary:
        temporary.write_text(tweet_speech.tokenizer(sizes), encoding="utf-8")
