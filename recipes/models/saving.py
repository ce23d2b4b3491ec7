"""Writes trained models the two ways users have them: an exported program and a state_dict."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recipes.datasets.cache import replacing


def save_program(model: nn.Module, sample: Mapping[str, np.ndarray], path: Path) -> Path:
    """Returns `path` after writing `model` there as `.pt2`, with one dynamic batch axis for all inputs.

    Args:
        model: In eval mode; takes the inputs by name.
        sample: Input name -> array with at least two rows.
        path: File to write, atomically.
    """
    batch = torch.export.Dim("batch", min=1)
    inputs = {name: torch.from_numpy(rows[:2]) for name, rows in sample.items()}
    shapes = {name: {0: batch} for name in inputs}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attribute")  # views of a recurrent layer's weights
        program = torch.export.export(model.eval(), (), kwargs=inputs, dynamic_shapes=shapes)
    with replacing(path) as temporary:
        torch.export.save(program, temporary)
    return path


def save_weights(model: nn.Module, path: Path) -> Path:
    """Returns `path` after writing the model's state_dict there, loadable with `weights_only=True`."""
    with replacing(path) as temporary:
        torch.save(model.state_dict(), temporary)
    return path
