"""Trains the cross-attention of a question's words to the tokens of a square of four images."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import questions
from recipes.models import cross_attention
from recipes.training.pairs import predict, save_pairs
from recipes.training.writing import note, save_also, tensors


def make(place: Path, *, quick: bool = False, data_root: Path | None = None) -> None:
    """Writes `model.pt2`, `calib.npz`, `eval.npz` and `tokenizer.json` to `place`.

    Args:
        place: Folder to write to.
        quick: A few steps on a few samples.
        data_root: Folder with the user's `cifar-10-batches-bin`, or None.
    """
    sizes = questions.QUICK if quick else questions.Sizes()
    splits = questions.load(data_root, sizes)
    model = cross_attention.build()
    cross_attention.train(model, tensors(splits["train"]), epochs=1 if quick else 5, report=note)

    def score(without: str) -> float:
        said = predict(model, splits["eval"], without)["logits"].argmax(1)
        return float((said == splits["eval"]["label"]).mean())

    note(f"accuracy {score(''):.2%}")
    save_also(place, {"image alone": score("text"), "text alone": score("image")})
    save_pairs(model, splits, place, questions.tokenizer(data_root, sizes))
