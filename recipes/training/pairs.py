"""What the models of an image beside a review share in training: the data, the scores, the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recipes.datasets import image_text
from recipes.datasets.cache import Arrays, replacing
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_also, save_data, tensors

Train = Callable[..., None]


def make_pairs(
    model: nn.Module, train: Train, place: Path, *, epochs: int, quick: bool, data_root: Path | None
) -> None:
    """Trains `model` to name a pair of classes and writes `model.pt2`, `calib.npz`, `eval.npz`, `tokenizer.json`.

    Args:
        model: Takes `image` and `text`, gives `logits` `[B,20]`, class = class of the image × 2 + mood.
        train: The function of that name beside the model.
        place: Folder to write to.
        epochs: Passes over the reviews.
        quick: One pass over a few samples.
        data_root: Folder with the user's CIFAR-10 and IMDb, or None.
    """
    sizes = image_text.QUICK if quick else image_text.Sizes()
    splits = image_text.load(data_root, sizes)
    train(model, tensors(splits["train"]), epochs=1 if quick else epochs, report=note)
    for split in ("calib", "eval"):
        splits[split] = splits[split] | {"label": splits[split]["label"] @ np.array([2, 1])}

    def score(without: str) -> float:
        said = predict(model, splits["eval"], without)["logits"].argmax(1)
        return float((said == splits["eval"]["label"]).mean())

    note(f"accuracy {score(''):.2%}")
    save_also(place, {"image alone": score("text"), "text alone": score("image")})
    save_pairs(model, splits, place, image_text.tokenizer(data_root, sizes))


@torch.inference_mode()
def predict(model: nn.Module, arrays: Arrays, without: str = "") -> Arrays:
    """Returns every output for `image` and `text`, of which the one called `without` is set to zero."""
    batches = []
    for start in range(0, len(arrays["image"]), 200):
        image, text = (
            torch.from_numpy(arrays[name][start : start + 200] * (name != without)) for name in ("image", "text")
        )
        batches.append({name: output.numpy() for name, output in model(image, text).items()})
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def save_pairs(model: nn.Module, splits: dict[str, Arrays], place: Path, tokenizer: str) -> None:
    """Writes the model, the samples and what makes word ids of a text to `place`."""
    save_data(place, splits)
    save_program(model, first({n: splits["calib"][n] for n in ("image", "text")}, 2), place / "model.pt2")
    with replacing(place / "tokenizer.json") as temporary:
        temporary.write_text(tokenizer, encoding="utf-8")
