"""Calls the command line as a user does: in this process for speed, in a fresh one for proof."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import CACHE, FUSION_STAGE, IMAGE_STAGE, STREAM, onnx_bytes, tensor, with_host_steps

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.cli import main
from edgemm.preprocess import parse
from edgemm.preprocess.front import InputSteps
from edgemm.tensors import BATCH, IOSpec, StateSpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def edgemm(capfd):
    """Runs `edgemm ARGS...` in this process."""

    def call(*args: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
        captured = capfd.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def edgemm_process(tmp_path: Path):
    """Runs `python -m edgemm ARGS...` in a fresh process, below `tmp_path`."""

    def call(*args: object, path: tuple[Path, ...] = (), **environment: str) -> Result:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))} | environment
        done = subprocess.run(
            [sys.executable, "-m", "edgemm", *map(str, args)],
            capture_output=True,
            text=True,
            env=env,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def edgemm_on_device():
    """Runs `edgemm ARGS...` in a process where nothing but the base packages and onnxruntime imports."""
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        blocked = {'torch', 'onnx', 'onnx_ir', 'onnxscript', 'pydantic', 'yaml', 'sklearn'}\n"
        "        if name.split('.')[0] in blocked: raise ImportError(f'no {name} here')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from edgemm.cli import main; main()"
    )

    def call(*args: object) -> Result:
        command = [sys.executable, "-c", program, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def fusion_bundle(tmp_path: Path) -> Path:
    """image[4] and audio[2]; logits are image @ WEIGHT, then audio. One refused variant."""
    image, audio = tensor("image", "batch", 4), tensor("audio", "batch", 2)
    features, logits = tensor("features", "batch", 3), tensor("logits", "batch", 5)
    folder = "engines/cpu-fp32"
    engines = (
        EngineEntry("image", ("image",), f"{folder}/image.onnx", ("image",), ("features",), {"fp32": 1}),
        EngineEntry(
            "fusion", ("fusion",), f"{folder}/fusion.onnx", ("features", "audio"), ("logits",), {"fp32": 1}
        ),
    )
    files = {
        f"{folder}/image.onnx": onnx_bytes(IMAGE_STAGE),
        f"{folder}/fusion.onnx": onnx_bytes(FUSION_STAGE),
        "recipe.json": b"{}\n",
    }
    size = sum(len(data) for name, data in files.items() if name.endswith(".onnx"))
    accuracy = {
        "metric": "accuracy",
        "float": 0.975,
        "variant": 0.975,
        "drop": 0.0,
        "budget": 0.01,
        "samples": 500,
    }
    manifest = Manifest(
        name="digits",
        io=IOSpec(
            (image, audio),
            (logits,),
            {"image": "image", "audio": "audio"},
            reasons={"image": "an input of its own", "audio": "an input of its own"},
        ),
        stages=(
            StageEntry("image", ("image",), "encoder", (image,), (features,), 1, 12),
            StageEntry("fusion", ("image", "audio"), "fusion head", (features, audio), (logits,), 1, 0),
        ),
        joins=(
            {"node": "concat", "op": "Concat", "kind": "concat", "stage": "fusion", "sources": ["image", "audio"]},
        ),
        variants=(
            Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", engines, {"fp32": 2}, size, accuracy),
            Variant(
                "cpu-int8", "cpu", "onnxruntime", "int8", "staged", (), {}, 0, None, "1.41 × slower than float"
            ),
        ),
        info={
            "parity": {"max_abs": 2.3e-05, "cosine": 0.999999, "samples": 50},
            "tools": {"edgemm": "0.1.0", "onnxruntime": "1.31.1"},
            "float_size_bytes": size,
        },
        measured={
            "created": "2026-11-22T10:00:00Z",
            "latency": {"cpu-fp32": {"float_ms": 0.373, "variant_ms": 0.159, "ratio": 0.426}},
        },
    )
    path = tmp_path / "digits.edgemm"
    write_bundle(path, manifest, files)
    return path


@pytest.fixture
def raw_bundle(fusion_bundle: Path) -> Path:
    """`fusion_bundle` that takes a camera's bytes for its image; their steps run on the host."""
    steps = parse([{"normalize": {"mean": [100], "std": [50]}}])
    return with_host_steps(fusion_bundle, InputSteps("image", TensorSpec("camera", "uint8", (BATCH, 4)), steps))


def one_engine(path: Path, io: IOSpec, model: str, nodes: int) -> Path:
    """Writes a bundle of one stage that is also its only modality."""
    (modality,) = io.modality_names()
    file, data = f"engines/cpu-fp32/{modality}.onnx", onnx_bytes(model)
    inputs, outputs = tuple(i.name for i in io.inputs), tuple(o.name for o in io.outputs)
    engine = EngineEntry(modality, (modality,), file, inputs, outputs, {"fp32": nodes})
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", (engine,), {"fp32": nodes}, len(data))
    stage = StageEntry(modality, (modality,), "encoder", io.inputs, io.outputs, nodes, 1)
    write_bundle(path, Manifest(path.stem, io, (stage,), (), (variant,)), {file: data})
    return path


@pytest.fixture
def stream_bundle(tmp_path: Path) -> Path:
    """h_out = h + x, y = 2 h_out: the output is twice the running sum."""
    inputs = (tensor("x", "batch", 2), tensor("h", "batch", 2))
    outputs = (tensor("y", "batch", 2), tensor("h_out", "batch", 2))
    io = IOSpec(inputs, outputs, {"x": "x"}, (StateSpec("h", "h_out"),))
    return one_engine(tmp_path / "stream.edgemm", io, STREAM, 2)


@pytest.fixture
def cache_bundle(tmp_path: Path) -> Path:
    """A state that grows by one row per call, as a key-value cache does."""
    inputs = (tensor("x", "batch", 1, 2), tensor("past", "batch", "length", 2))
    outputs = (tensor("y", "batch", 2), tensor("present", "batch", "longer", 2))
    io = IOSpec(inputs, outputs, {"x": "x"}, (StateSpec("past", "present"),))
    return one_engine(tmp_path / "cache.edgemm", io, CACHE, 2)


@pytest.fixture
def onnx_file(tmp_path: Path):
    """Writes an ONNX text as a file."""

    def write(text: str, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(onnx_bytes(text))
        return path

    return write


@pytest.fixture
def npz(tmp_path: Path):
    """Writes arrays as an .npz file."""

    def write(name: str = "data.npz", **arrays: np.ndarray) -> Path:
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a whole diagram, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe file."""

    def call(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return call
