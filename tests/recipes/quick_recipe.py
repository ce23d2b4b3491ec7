"""What the slow tests of the recipes share: a recipe trained a little and converted, as a user would."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.prepare import recipe_at

ROOT = Path(__file__).resolve().parents[2]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Converted:
    """A recipe's files, its bundle, and what `convert --json` printed."""

    place: Path
    bundle: Path
    result: Mapping[str, Any]

    @property
    def modalities(self) -> dict[str, str]:
        """Input name -> modality."""
        return {i["name"]: i["modality"] for i in self.result["inputs"] if i.get("modality")}

    @property
    def roles(self) -> dict[frozenset[str], str]:
        """Modalities of a stage -> its role."""
        return {frozenset(s["modalities"]): s["role"] for s in self.result["stages"]}

    @property
    def accuracy(self) -> Mapping[str, Any]:
        """Of the variant that ships, on the evaluation samples."""
        return next(v for v in self.result["variants"] if v["refused"] is None)["accuracy"]

    def samples(self, shard: str = "eval.npz") -> Arrays:
        """Returns the arrays of a file of the recipe."""
        with np.load(self.place / shard, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}

    def source(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """Returns what the trained model itself, a .pt2, gives."""
        module = torch.export.load(self.place / "model.pt2").module()
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(rows) for name, rows in feed.items()})
        return {name: value.numpy() for name, value in outputs.items()}


def convert_quick(name: str, folder: Path, *options: str) -> Converted:
    """Trains recipe `name` with `quick=True` below `folder` and converts it by its YAML."""
    place, bundle = folder / name, folder / f"{name}.edgemm"
    place.mkdir(parents=True)
    with training_threads():
        importlib.import_module(f"recipes.training.{name}").make(place, quick=True)
    words = (str(recipe_at(name, place)), "-o", str(bundle), "--json", *options)
    command = [sys.executable, "-m", "edgemm", "convert", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return Converted(place, bundle, json.loads(done.stdout))


@contextmanager
def training_threads() -> Iterator[None]:
    """Trains with as many threads as `python -m recipes.prepare` does."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
