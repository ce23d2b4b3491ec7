"""A small manifest with two stages, and the files that it names."""

from __future__ import annotations

import pytest

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant
from edgemm.tensors import IOSpec, TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 4))
FEATURES = TensorSpec("features", "float32", ("batch", 3))
AUDIO = TensorSpec("audio", "float32", ("batch", 3))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))


@pytest.fixture
def tiny_files() -> dict[str, bytes]:
    return {
        "recipe.json": b"{}\n",
        "engines/cpu-fp32/image.onnx": b"image engine",
        "engines/cpu-fp32/fusion.onnx": b"fusion engine",
    }


@pytest.fixture
def tiny_manifest(tiny_files: dict[str, bytes]) -> Manifest:
    engines = (
        EngineEntry("image", ("image",), "engines/cpu-fp32/image.onnx", ("image",), ("features",), {"fp32": 2}),
        EngineEntry(
            "fusion", ("fusion",), "engines/cpu-fp32/fusion.onnx", ("features", "audio"), ("logits",), {"fp32": 1}
        ),
    )
    return Manifest(
        name="tiny",
        io=IOSpec((IMAGE, AUDIO), (LOGITS,), {"image": "image", "audio": "audio"}),
        stages=(
            StageEntry("image", ("image",), "encoder", (IMAGE,), (FEATURES,), 2, 12),
            StageEntry("fusion", ("image", "audio"), "fusion head", (FEATURES, AUDIO), (LOGITS,), 1, 0),
        ),
        joins=({"node": "add", "op": "Add", "kind": "add", "stage": "fusion", "sources": ["image", "audio"]},),
        variants=(
            Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", engines, {"fp32": 3}, 25, {"drop": 0.0}),
        ),
        files={name: {"sha256": "0" * 64, "size": len(data)} for name, data in tiny_files.items()},
    )
