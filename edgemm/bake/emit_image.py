"""ONNX nodes of the steps for images."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.bake.tape import Tape
from edgemm.preprocess import image
from edgemm.tensors import TensorSpec


def bgr_to_rgb(tape: Tape, value: ir.Value, step: image.BgrToRgb, spec: TensorSpec) -> ir.Value:
    """Gathers the channels 2, 1, 0."""
    return tape.op("Gather", [value, tape.integers(2, 1, 0)], axis=3)
