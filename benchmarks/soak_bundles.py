"""Makes two bundles of one model with different weights, and samples for them: what a soak swaps.

    python -m benchmarks.soak_bundles build/soak

Apart from the soak, since torch and the converter are not to be in the memory that it watches.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.fixtures import build
from benchmarks.soak import NAMES, SAMPLES
from recipes.models import av_digits
from recipes.models.saving import save_program

_CHANGE = 0.02
"""Relative change of every weight of the second model: about what a fine-tuning does."""

_PLAIN = ("--precision", "fp32", "--layout", "staged", "--engine", "onnxruntime", "--force")


def main() -> None:
    """Makes both bundles and the samples in the folder that is named, unless they are there."""
    folder = Path(sys.argv[1])
    if all((folder / name).exists() for name in (*NAMES, SAMPLES)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    fixture = build("av_digits")
    model = av_digits.build()
    model.load_state_dict(torch.load(fixture.model.with_suffix(".pt"), weights_only=True))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + _CHANGE * torch.randn_like(weight))
    with np.load(fixture.calib) as samples:
        inputs = {name: samples[name] for name in ("image", "audio")}
    second = save_program(model, inputs, folder / "second.pt2")
    for name, source in zip(NAMES, (fixture, replace(fixture, model=second)), strict=True):
        command = source.convert_command(folder / name, *_PLAIN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    np.savez(folder / SAMPLES, **{name: rows[:64] for name, rows in inputs.items()})


if __name__ == "__main__":
    main()
