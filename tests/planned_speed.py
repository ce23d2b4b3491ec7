"""Small bundles of one model in which one stage takes much longer than in the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, read_manifest, write_bundle
from edgemm.tensors import IOSpec, TensorSpec

_HEAD = '<ir_version: 10, opset_import: ["": 20]>'
_WEIGHT = ", ".join(map(str, np.arange(12) / 10))
_WORK = """
  total = ReduceSum<keepdims=1>({source})
  square = Expand(total, size)
  product = MatMul(square, square)
  most = ReduceMax<keepdims=0>(product)
  nothing = Mul(most, zero)
"""
_SIZES = "int64[2] size = {256, 256}, float zero = {0.0}"
FOLDER = "engines/cpu-fp32"


def image_stage(*, slow: bool = False) -> str:
    work = _WORK.format(source="image") + "  raw = MatMul(image, w)\n  features = Add(raw, nothing)"
    return (
        f"{_HEAD}\nimage (float[batch,4] image) => (float[batch,3] features)\n"
        f"<float[4,3] w = {{{_WEIGHT}}}{f', {_SIZES}' if slow else ''}>\n"
        f"{{ {work if slow else 'features = MatMul(image, w)'} }}"
    )


def fusion_stage(*, slow: bool = False) -> str:
    work = _WORK.format(source="audio") + "  raw = Concat<axis=1>(features, audio)\n  logits = Add(raw, nothing)"
    return (
        f"{_HEAD}\nfusion (float[batch,3] features, float[batch,2] audio) => (float[batch,5] logits)\n"
        f"{f'<{_SIZES}>' if slow else ''}\n{{ {work if slow else 'logits = Concat<axis=1>(features, audio)'} }}"
    )


def _onnx(text: str) -> bytes:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def fusion_pair(folder: Path) -> dict[str, Path]:
    """Writes bundles of one model: `plain`; `image` and `fusion` with that stage slowed; `other`, another model.

    The work that slows a stage adds zero to its output.
    """
    image, audio, features, logits = (
        TensorSpec(name, "float32", ("batch", size))
        for name, size in (("image", 4), ("audio", 2), ("features", 3), ("logits", 5))
    )
    engines = (
        EngineEntry("image", ("image",), f"{FOLDER}/image.onnx", ("image",), ("features",), {"fp32": 1}),
        EngineEntry(
            "fusion", ("fusion",), f"{FOLDER}/fusion.onnx", ("features", "audio"), ("logits",), {"fp32": 1}
        ),
    )
    stages = (
        StageEntry("image", ("image",), "encoder", (image,), (features,), 1, 12),
        StageEntry("fusion", ("image", "audio"), "fusion head", (features, audio), (logits,), 1, 0),
    )
    io = IOSpec((image, audio), (logits,), {"image": "image", "audio": "audio"}, batch="batch")
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", engines, {"fp32": 2}, 0)
    paths = {}
    for name in ("plain", "image", "fusion"):
        files = {
            f"{FOLDER}/image.onnx": _onnx(image_stage(slow=name == "image")),
            f"{FOLDER}/fusion.onnx": _onnx(fusion_stage(slow=name == "fusion")),
        }
        paths[name] = folder / f"{name}.edgemm"
        write_bundle(paths[name], Manifest(name, io, stages, (), (variant,)), files)
    paths["other"] = _other_model(folder / "other.edgemm", paths["plain"])
    return paths


def _other_model(path: Path, plain: Path) -> Path:
    """Writes a model whose one input is called differently."""
    spec, out = TensorSpec("lidar", "float32", ("batch", 4)), TensorSpec("features", "float32", ("batch", 3))
    manifest = read_manifest(plain)
    engine = EngineEntry("lidar", ("lidar",), f"{FOLDER}/lidar.onnx", ("lidar",), ("features",), {"fp32": 1})
    variant = replace(manifest.variants[0], engines=(engine,))
    io = IOSpec((spec,), (out,), {"lidar": "lidar"}, batch="batch")
    stage = StageEntry("lidar", ("lidar",), "encoder", (spec,), (out,), 1, 12)
    text = image_stage().replace(" image)", " lidar)").replace("MatMul(image,", "MatMul(lidar,")
    write_bundle(path, Manifest("other", io, (stage,), (), (variant,)), {engine.file: _onnx(text)})
    return path
