"""A bundle of three tiny stages: what a call of it takes is nearly all overhead."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.runtime import SessionOptions, open_session
from edgemm.runtime.latency import measure
from edgemm.runtime.ort import open_onnx
from edgemm.tensors import IOSpec, TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 8))
AUDIO = TensorSpec("audio", "float32", ("batch", 8))
A = TensorSpec("image_features", "float32", ("batch", 8))
B = TensorSpec("audio_features", "float32", ("batch", 8))
LOGITS = TensorSpec("logits", "float32", ("batch", 16))

STAGES = {
    "image": ("{ image_features = Relu(image) }", (IMAGE,), (A,)),
    "audio": ("{ audio_features = Tanh(audio) }", (AUDIO,), (B,)),
    "fusion": ("{ logits = Concat<axis=1>(image_features, audio_features) }", (A, B), (LOGITS,)),
}


def measure_overhead(runs: int) -> dict[str, Any]:
    """Returns what `run` adds to the same engines' plain calls, in µs per stage: running all, and reusing all."""
    random = np.random.default_rng(0)
    feed = {n: random.normal(size=(1, 8)).astype(np.float32) for n in ("image", "audio")}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "tiny.edgemm"
        make_bundle(bundle)
        with (
            open_session(bundle, threads=1, cache="off") as full,
            open_session(bundle, threads=1, cache="marks") as marked,
            open_session(bundle, threads=1, cache="content") as compared,
        ):
            every = frozenset(feed)
            calls: dict[str, Callable[[], object]] = {
                "onnxruntime": raw_calls(bundle, feed),
                "run": lambda: full.run(feed),
                "marks, everything new": lambda: marked.run(feed, every),
                "content, nothing new": lambda: compared.run(feed),
            }
            times = measure(calls, runs=runs, warmup=500)
    raw = times.pop("onnxruntime").median
    added = {name: round((t.median - raw) / len(STAGES) * 1e6, 2) for name, t in times.items()}
    return {"stages": len(STAGES), "onnxruntime_us": raw * 1e6, "added_us_per_stage": added}


def make_bundle(path: Path) -> None:
    """Writes the bundle."""
    files, stages, engines = {}, [], []
    for name, (body, inputs, outputs) in STAGES.items():
        signature = [", ".join(f"float[batch,{t.shape[1]}] {t.name}" for t in ts) for ts in (inputs, outputs)]
        text = f'<ir_version: 10, opset_import: ["" : 20]>\n{name} ({signature[0]}) => ({signature[1]}) {body}'
        engine = get_backend("onnxruntime").build(ir.from_onnx_text(text), "cpu", path.parent / f"{name}.onnx")
        files[f"{name}.onnx"] = engine.file.read_bytes()
        stages.append(StageEntry(name, (name,), "encoder", inputs, outputs, 1, 0))
        names = tuple(i.name for i in inputs), tuple(o.name for o in outputs)
        engines.append(EngineEntry(name, (name,), f"{name}.onnx", *names, {"fp32": 1}))
    io = IOSpec((IMAGE, AUDIO), (LOGITS,), {"image": "image", "audio": "audio"})
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", tuple(engines), {"fp32": 3}, 0)
    write_bundle(path, Manifest("tiny", io, tuple(stages), (), (variant,)), files)


def raw_calls(path: Path, feed: dict[str, np.ndarray]) -> Callable[[], object]:
    """Returns a function that makes the three calls as one would write them by hand."""
    options = SessionOptions(threads=1)
    image, audio, fusion = (open_onnx(path / f"{name}.onnx", options, name) for name in STAGES)

    def call() -> object:
        (a,) = image.run(["image_features"], {"image": feed["image"]})
        (b,) = audio.run(["audio_features"], {"audio": feed["audio"]})
        return fusion.run(["logits"], {"image_features": a, "audio_features": b})

    return call
