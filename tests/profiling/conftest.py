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


WHOLE = """whole (float[batch,4] image, float[batch,2] points) => (float[batch,5] logits)
<float[4,3] w = {1,2,3, 4,5,6, 7,8,9, 1,1,1}> { p = MatMul(image, w)  seen = Tanh(p)  near = Abs(points)
  joined = Concat<axis=1>(seen, near)  logits = Sigmoid(joined) }"""


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    """logits[5] from image[4] of `camera` and points[2] of `lidar`: an engine for each, one for both."""
    return write_sensors(tmp_path / "sensors.edgemm", both=False)


@pytest.fixture
def sensors_both(tmp_path: Path) -> Path:
    """The same as one engine, which is opened first, beside the three."""
    return write_sensors(tmp_path / "both.edgemm", both=True)


def write_sensors(path: Path, *, both: bool) -> Path:
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
    variants = [make_variant("cpu-fp32-staged" if both else "cpu-fp32", "staged", engines)]
    if both:
        file = "engines/cpu-fp32/whole.onnx"
        files[file] = onnx.parser.parse_model(HEAD + WHOLE).SerializeToString()
        whole = EngineEntry("whole", tuple(parts), file, ("image", "points"), ("logits",), {"fp32": 1})
        variants.insert(0, make_variant("cpu-fp32", "whole", [whole], reuse="cpu-fp32-staged"))
    write_bundle(path, Manifest("sensors", io, tuple(stages), (), tuple(variants)), files)
    return path


def make_variant(name: str, layout: str, engines: list[EngineEntry], reuse: str = "") -> Variant:
    return Variant(name, "cpu", "onnxruntime", "fp32", layout, tuple(engines), {"fp32": 3}, 1000, reuse=reuse)


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
