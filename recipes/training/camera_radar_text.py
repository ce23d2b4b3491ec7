"""Trains the decision from a camera, a radar and a message on synthetic scenes."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import camera_radar_text as dataset
from recipes.models import camera_radar_text as reference
from recipes.models.saving import save_program
from recipes.training.writing import first, note, save_data, tensors


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt2`, `calib.npz` and `eval.npz` to `place`."""
    splits = dataset.load(0.05 if quick else 1.0)
    model, held_out = reference.build(), tensors(splits["eval"])
    reference.train(model, tensors(splits["train"]), epochs=1 if quick else 12, report=note)
    for without in ("", *reference.INPUTS):
        score = reference.accuracy(model, held_out, without=without)
        note(f"accuracy {score:.2%}" + (f" without {without}" if without else ""))
    save_data(place, splits)
    save_program(model, first({n: splits["calib"][n] for n in reference.INPUTS}, 2), place / "model.pt2")
