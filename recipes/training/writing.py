"""What training scripts share: tensors of arrays, files of splits, a line about how it goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from recipes.datasets.cache import Arrays, save_arrays


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Returns the arrays as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def save_data(place: Path, splits: Mapping[str, Arrays]) -> None:
    """Writes `place/calib.npz` and `place/eval.npz`; other splits are for training alone."""
    for split in ("calib", "eval"):
        save_arrays(place / f"{split}.npz", splits[split])


def first(arrays: Arrays, count: int) -> Arrays:
    """Returns the first `count` rows of every array."""
    return {name: array[:count] for name, array in arrays.items()}


def save_also(place: Path, scores: Mapping[str, float]) -> None:
    """Says other scores of the trained model and keeps them for the catalogue: `place/also.json`."""
    for name, score in scores.items():
        note(f"{name} {score:.2%}")
    (place / "also.json").write_text(json.dumps(scores))


def note(line: str) -> None:
    """Says on stderr how training goes."""
    print(f"  {line}", file=sys.stderr, flush=True)
