"""Trains pictures and sentences into one space."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import captions as dataset
from recipes.models import image_text_align
from recipes.models.review_image import minilm_folder
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors

QUICK = dataset.Options(pairs=(200, 32, 64), images=(256, 128, 128))
INPUTS = ("image", "input_ids", "attention_mask")
ALSO = ("metrics.py:recall_at_5",)


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    tokenizer = minilm_folder() / "tokenizer.json"
    splits = dataset.load(tokenizer, QUICK) if quick else dataset.load(tokenizer)
    model = image_text_align.build()
    image_text_align.train(model, tensors(splits["train"]), epochs=2 if quick else 12, report=note)
    save_data(place, splits)
    save_program(model, first({name: splits["calib"][name] for name in INPUTS}, 2), place / "model.pt2")
