"""Step name -> emitter, loaded when a step is baked."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import onnx_ir as ir

from edgemm.bake.tape import Tape
from edgemm.tensors import TensorSpec

Emitter = Callable[[Tape, ir.Value, Any, TensorSpec], ir.Value]
"""Writes a step's nodes: the tape, what goes in, the step, dtype and shape of what goes in."""

EMITTERS: Mapping[str, str] = {
    "bgr_to_rgb": "edgemm.bake.emit_image:bgr_to_rgb",
    "nv12_to_rgb": "edgemm.bake.emit_image:nv12_to_rgb",
    "resize": "edgemm.bake.emit_image:resize",
    "center_crop": "edgemm.bake.emit_image:center_crop",
    "crop": "edgemm.bake.emit_image:crop",
    "grayscale": "edgemm.bake.emit_image:grayscale",
    "sobel": "edgemm.bake.emit_image:sobel",
    "to_chw": "edgemm.bake.emit_image:to_chw",
    "normalize": "edgemm.bake.emit_image:normalize",
    "bev": "edgemm.bake.emit_points:bev",
    "pillars": "edgemm.bake.emit_points:pillars",
    "pcm": "edgemm.bake.emit_audio:pcm",
    "mono": "edgemm.bake.emit_audio:mono",
    "fit_length": "edgemm.bake.emit_audio:fit_length",
    "resample": "edgemm.bake.emit_audio:resample",
    "pre_emphasis": "edgemm.bake.emit_audio:pre_emphasis",
    "normalize_clip": "edgemm.bake.emit_audio:normalize_clip",
    "log_mel": "edgemm.bake.emit_audio:log_mel",
    "mfcc": "edgemm.bake.emit_audio:log_mel",
    "kaldi_fbank": "edgemm.bake.emit_audio:kaldi_fbank",
    "units": "edgemm.bake.emit_imu:units",
    "mount_axes": "edgemm.bake.emit_imu:mount_axes",
    "gravity": "edgemm.bake.emit_imu:gravity",
    "transpose": "edgemm.bake.emit_imu:transpose",
}
"""Step name -> `"module:function"`. A step without a row runs on the host."""


def emitter(name: str) -> Emitter | None:
    """Returns the emitter of the step `name`, or None if no graph can compute it."""
    if name not in EMITTERS:
        return None
    module, _, attribute = EMITTERS[name].partition(":")
    return cast("Emitter", getattr(importlib.import_module(module), attribute))
