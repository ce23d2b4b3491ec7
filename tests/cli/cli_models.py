"""Tiny models as ONNX text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser

from edgemm.bundle import read_manifest, write_bundle
from edgemm.preprocess.front import InputSteps
from edgemm.tensors import TensorSpec

HEAD = '<ir_version: 10, opset_import: ["": 20]>'
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
IMAGE_STAGE = f"""{HEAD}
image (float[batch,4] image) => (float[batch,3] features)
<float[4,3] w = {{{", ".join(map(str, WEIGHT.ravel()))}}}> {{ features = MatMul(image, w) }}"""
FUSION_STAGE = f"""{HEAD}
fusion (float[batch,3] features, float[batch,2] audio) => (float[batch,5] logits)
{{ logits = Concat<axis=1>(features, audio) }}"""
STREAM = f"""{HEAD}
stream (float[batch,2] x, float[batch,2] h) => (float[batch,2] y, float[batch,2] h_out)
<float two = {{2.0}}> {{ h_out = Add(h, x)  y = Mul(h_out, two) }}"""
CACHE = f"""{HEAD}
cache (float[batch,1,2] x, float[batch,length,2] past) => (float[batch,2] y, float[batch,longer,2] present)
<int64[1] axes = {{1}}> {{ present = Concat<axis=1>(past, x)  y = ReduceSum<keepdims=0>(present, axes) }}"""
LENGTHS = f"""{HEAD}
lengths (float[batch,time] x) => (float[batch,time] y) {{ y = Neg(x) }}"""
TOTAL = f"""{HEAD}
total (float[batch,3] x) => (float total, float[batch,3] y)
{{ total = ReduceSum<keepdims=0>(x)  y = Neg(x) }}"""


def onnx_bytes(text: str) -> bytes:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def with_host_steps(bundle: Path, way: InputSteps, files: Mapping[str, bytes] | None = None) -> Path:
    """Writes a bundle again with steps in front of an input, and the files that they read."""
    manifest = read_manifest(bundle)
    kept = {name: (bundle / name).read_bytes() for name in manifest.files}
    path = bundle.with_name("raw.edgemm")
    write_bundle(path, replace(manifest, preprocess=(way.to_json(),)), kept | dict(files or {}))
    return path
