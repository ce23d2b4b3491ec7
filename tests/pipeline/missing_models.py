"""Two-modality ONNX models whose best answer without one modality is known, and their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from builders import onnx_graph

GATE = """gate (float[batch,1] image, float[batch,1] audio) => (float[batch,2] logits)
{ f = MatMul(image, four)  g = Tanh(audio)  p = Mul(f, g)  n = Neg(p)  logits = Concat<axis=1>(n, p) }"""
"""Class 1 where image and audio have the same sign. Without audio, one should be less sure than its mean says."""

SUM = """sum (float[batch,3] image, float[batch,3] audio) => (float[batch,1] y)
{ f = MatMul(image, ones)  g = MatMul(audio, ones)  y = Add(f, g) }"""
"""Nothing stands better for a term than its mean."""

WEIGHTS = {
    GATE: {"four": np.full((1, 1), 4, np.float32)},
    SUM: {"ones": np.full((3, 1), 1, np.float32)},
}
POSITIVE = 0.75
"""Share of the audio samples of GATE that are positive."""


def gate_samples(count: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    image = np.where(random.random((count, 1)) < 0.5, 1, -1).astype(np.float32)
    audio = np.where(random.random((count, 1)) < POSITIVE, 3, -3).astype(np.float32)
    return {"image": image, "audio": audio, "label": ((image * audio)[:, 0] > 0).astype(np.int64)}


def sum_samples(count: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    image, audio = (random.standard_normal((count, 3)).astype(np.float32) for _ in range(2))
    return {"image": image, "audio": audio + 2, "label": (image + audio + 2).sum(1, keepdims=True)}


def write(folder: Path, text: str, samples: Any, *, labels: bool = True) -> dict[str, Any]:
    """Writes model.onnx, calib.npz and eval.npz; returns the sections of a float recipe, one engine per stage."""
    onnx.save(ir.to_proto(onnx_graph(text, weights=WEIGHTS[text]).model), folder / "model.onnx")
    for name, count, seed in (("calib", 300, 0), ("eval", 120, 1)):
        arrays = samples(count, seed)
        np.savez(folder / f"{name}.npz", **(arrays if labels else {n: arrays[n] for n in ("image", "audio")}))
    data = {"calib": str(folder / "calib.npz"), "eval": str(folder / "eval.npz")}
    return {
        "model": {"path": folder / "model.onnx"},
        "data": data | ({"label": "label"} if labels else {}),
        "quantize": {"precision": "fp32"},
        "layout": "staged",
        "engine": "onnxruntime",
    }
