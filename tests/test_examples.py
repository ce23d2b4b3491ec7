"""The examples run: on a small bundle with the inputs that they play, as a user starts them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.tensors import IOSpec, TensorSpec

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

ENGINES = {
    "image": (("image",), "seen", "{ seen = ReduceMean<keepdims=0>(image, axes) }", "<int64[2] axes = {1, 2}>"),
    "audio": (("audio",), "heard", "{ heard = ReduceMean<keepdims=0>(audio, axes) }", "<int64[2] axes = {1, 2}>"),
    "fusion": (("seen", "heard"), "logits", "{ logits = Concat<axis=1>(seen, heard) }", ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """digits.edgemm, of an image and an audio encoder and a head, and eval.npz."""
    shapes = {"image": (1, 28, 28), "audio": (1, 40, 50), "seen": (28,), "heard": (50,), "logits": (78,)}
    spec = {name: TensorSpec(name, "float32", ("batch", *shape)) for name, shape in shapes.items()}
    files, stages, entries = {}, [], []
    for name, (takes, gives, body, constants) in ENGINES.items():
        typed = {t: f"float[{','.join(map(str, spec[t].shape))}] {t}" for t in (*takes, gives)}
        inputs = ", ".join(typed[t] for t in takes)
        text = (
            f'<ir_version: 10, opset_import: ["" : 20]>\n{name} ({inputs}) => ({typed[gives]}) {constants} {body}'
        )
        engine = get_backend("onnxruntime").build(ir.from_onnx_text(text), "cpu", tmp_path / f"{name}.onnx")
        files[f"{name}.onnx"] = engine.file.read_bytes()
        stages.append(StageEntry(name, (name,), "", tuple(spec[t] for t in takes), (spec[gives],), 1, 0))
        entries.append(EngineEntry(name, (name,), f"{name}.onnx", takes, (gives,), {"fp32": 1}))
    io = IOSpec((spec["image"], spec["audio"]), (spec["logits"],), {"image": "image", "audio": "audio"})
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", tuple(entries), {"fp32": 3}, 0)
    write_bundle(tmp_path / "digits.edgemm", Manifest("digits", io, tuple(stages), (), (variant,)), files)
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((20, *shapes[name])).astype(np.float32) for name in ("image", "audio")}
    np.savez(tmp_path / "eval.npz", label=random.integers(0, 10, 20), **arrays)
    return tmp_path


def run(example: str, folder: Path, seconds: float) -> str:
    command = [sys.executable, str(EXAMPLES / example), "digits.edgemm", "eval.npz", "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_camera_and_microphone(folder: Path) -> None:
    told = run("camera_microphone.py", folder, 1.5)
    runs = dict(re.findall(r"(\w+) (\d+)", re.search("runs: (.*)", told)[1]))  # type: ignore[index]
    assert int(runs["audio"]) < int(runs["image"]) == int(runs["fusion"])
    assert re.search(r"seen and heard: \d+ of \d+ right", told)
    assert re.search(r"image: Counters\(pushed=\d+, used=\d+", told)


def test_sensors_in_asyncio(folder: Path) -> None:
    told = run("asyncio_sensors.py", folder, 4.0)
    results, stale = map(int, re.search(r"(\d+) results, (\d+) with a stale frame", told).groups())  # type: ignore[union-attr]
    assert 1 <= stale < results
    assert "ran (), stale ('image',)" in told


@pytest.mark.parametrize("name", ["camera_microphone.py", "asyncio_sensors.py"])
def test_what_is_missing_is_said_in_a_line(folder: Path, name: str) -> None:
    for bundle, samples in (
        (folder / "none.edgemm", folder / "eval.npz"),
        (folder / "digits.edgemm", folder / "no.npz"),
    ):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, bundle, samples], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "no such file" in done.stderr.lower()
