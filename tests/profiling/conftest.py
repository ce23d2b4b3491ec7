"""A bundle of two sensors, with real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.runtime import FusionSession, open_session
from edgemm.tensors import IOSpec, TensorSpec

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
CAMERA = """camera (float[batch,4] image) => (float[batch,3] seen)
<float[4,3] w = {1,2,3, 4,5,6, 7,8,9, 1,1,1}> { p = MatMul(image, w)  seen = Tanh(p) }"""
LIDAR = """lidar (float[batch,2] points) => (float[batch,2] near) { near = Abs(points) }"""
FUSION = """fusion (float[batch,3] seen, float[batch,2] near) => (float[batch,5] logits)
{ joined = Concat<axis=1>(seen, near)  logits = Sigmoid(joined) }"""


def spec(name: str, size: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", size))


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    """logits[5] from image[4] of `camera` and points[2] of `lidar`: an engine for each, one for both."""
    image, points, seen, near = spec("image", 4), spec("points", 2), spec("seen", 3), spec("near", 2)
    logits = spec("logits", 5)
    parts = {
        "camera": (CAMERA, ("camera",), (image,), (seen,)),
        "lidar": (LIDAR, ("lidar",), (points,), (near,)),
        "fusion": (FUSION, ("camera", "lidar"), (seen, near), (logits,)),
    }
    files, stages, engines = {}, [], []
    for name, (text, modalities, inputs, outputs) in parts.items():
        file = f"engines/cpu-fp32/{name}.onnx"
        files[file] = onnx.parser.parse_model(HEAD + text).SerializeToString()
        stages.append(StageEntry(name, modalities, "encoder", inputs, outputs, 1, 0))
        names = tuple(i.name for i in inputs), tuple(o.name for o in outputs)
        engines.append(EngineEntry(name, (name,), file, *names, {"fp32": 1}))
    io = IOSpec((image, points), (logits,), {"image": "camera", "points": "lidar"})
    size = sum(map(len, files.values()))
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", tuple(engines), {"fp32": 3}, size)
    path = tmp_path / "sensors.edgemm"
    write_bundle(path, Manifest("sensors", io, tuple(stages), (), (variant,)), files)
    return path


@pytest.fixture
def session(sensors: Path) -> Iterator[FusionSession]:
    with open_session(sensors, cache="off", threads=1) as opened:
        yield opened


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    """Three samples; the first element of each input is its index."""
    return [
        {"image": np.full((1, 4), at, np.float32), "points": np.full((1, 2), at, np.float32)} for at in range(3)
    ]
