"""What `FusionSession.run` adds to the plain onnxruntime calls for the same stages.

    python benchmarks/overhead.py [--runs 20000] [--batch 1] [--json]

A bundle of three tiny stages (two encoders, one fusion head) is built in a temporary folder. Its session and
three `onnxruntime.InferenceSession.run` calls with the same options are timed interleaved in one process; the
models are so small that the times are nearly all overhead. The limit is 15 µs per stage at the median.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.runtime import SessionOptions, open_session
from edgemm.runtime.latency import measure, ratio
from edgemm.runtime.ort import open_onnx
from edgemm.tensors import IOSpec, TensorSpec

LIMIT = 15e-6

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


def make_bundle(path: Path) -> None:
    """Writes the bundle of three tiny stages."""
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
    write_bundle(path, Manifest("overhead", io, tuple(stages), (), (variant,)), files)


def raw_calls(path: Path, feed: dict[str, np.ndarray]) -> Callable[[], object]:
    """Returns a function that makes the three calls as one would write them by hand."""
    options = SessionOptions(threads=1)
    image, audio, fusion = (open_onnx(path / f"{name}.onnx", options, name) for name in STAGES)

    def call() -> object:
        (a,) = image.run(["image_features"], {"image": feed["image"]})
        (b,) = audio.run(["audio_features"], {"audio": feed["audio"]})
        return fusion.run(["logits"], {"image_features": a, "audio_features": b})

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="samples per call (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    feed = {n: random.normal(size=(arguments.batch, 8)).astype(np.float32) for n in ("image", "audio")}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "overhead.edgemm"
        make_bundle(bundle)
        with open_session(bundle, threads=1, cache="off") as session:
            calls = {"edgemm": lambda: session.run(feed), "onnxruntime": raw_calls(bundle, feed)}
            times = measure(calls, runs=arguments.runs, warmup=500)
    mine, raw = times["edgemm"], times["onnxruntime"]
    per_stage = (mine.median - raw.median) / len(STAGES)
    result = {
        "stages": len(STAGES),
        "edgemm": mine.to_json(),
        "onnxruntime": raw.to_json(),
        "ratio": ratio(mine, raw).to_json(),
        "overhead_us_per_stage": round(per_stage * 1e6, 2),
        "limit_us_per_stage": LIMIT * 1e6,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print(
            f"onnxruntime   p50 {raw.median * 1e6:8.1f} µs   ({raw.runs} interleaved runs, {len(STAGES)} stages)"
        )
        print(f"edgemm        p50 {mine.median * 1e6:8.1f} µs")
        print(f"overhead      p50 {per_stage * 1e6:8.1f} µs per stage (limit {LIMIT * 1e6:.0f})")
    return 0 if per_stage <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
