"""The device side is light: what it imports, and a bundle that runs where only numpy and onnxruntime are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from device_side import device_files

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, read_manifest, write_bundle
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

ROOT = Path(__file__).parents[1]

HEAVY = ["torch", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml", "click", "rich", "sklearn", "safetensors"]
HEAVY += ["ml_dtypes", "scipy", "pandas", "hypothesis", "pytest"]

BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"blocked: {{name}}")

sys.meta_path.insert(0, Block())
"""

RUN = """
import json, sys
import numpy as np
from edgemm.runtime import open_session
with open_session(sys.argv[1]) as session:
    for _ in range(2):
        out = session.run({
            "image": np.full((2, 3), 2, np.float32), "audio": np.ones((2, 1), np.float32)
        })
print(json.dumps({"out": out["logits"].tolist(), "modules": sorted({m.partition(".")[0] for m in sys.modules})}))
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two stages and a state: logits = [relu(image), audio + calls before]."""
    header = '<ir_version: 10, opset_import: ["" : 20]>\n'
    image, features = (TensorSpec(n, "float32", ("batch", 3)) for n in ("image", "features"))
    audio, count, count_out = (TensorSpec(n, "float32", ("batch", 1)) for n in ("audio", "count", "count_out"))
    logits = TensorSpec("logits", "float32", ("batch", 4))
    stages = {
        "image": ("{ features = Relu(image) }", (image,), (features,)),
        "fusion": (
            "{ logits = Concat<axis=1>(features, count)  count_out = Add(count, audio) }",
            (features, audio, count),
            (logits, count_out),
        ),
    }
    files, entries, engines = {}, [], []
    for name, (body, inputs, outputs) in stages.items():
        signature = [", ".join(f"float[batch,{t.shape[1]}] {t.name}" for t in ts) for ts in (inputs, outputs)]
        model = ir.from_onnx_text(f"{header}{name} ({signature[0]}) => ({signature[1]}) {body}")
        files[f"{name}.onnx"] = (
            get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine.onnx").file.read_bytes()
        )
        entries.append(StageEntry(name, (name,), "encoder", inputs, outputs, 1, 0))
        names = tuple(i.name for i in inputs), tuple(o.name for o in outputs)
        engines.append(EngineEntry(name, (name,), f"{name}.onnx", *names, {"fp32": 1}))
    io = IOSpec(
        (image, audio, count),
        (logits, count_out),
        {"image": "image", "audio": "audio"},
        states=(StateSpec("count", "count_out"),),
    )
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", tuple(engines), {"fp32": 3}, 0)
    path = tmp_path / "tiny.edgemm"
    write_bundle(path, Manifest("tiny", io, tuple(entries), (), (variant,)), files)
    return path


def python(code: str, *arguments: str, interpreter: str = sys.executable, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [interpreter, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "tensors",
        "compare",
        "bundle",
        "runtime",
        "runtime.latency",
        "runtime.registry",
        "runtime.ort",
        "runtime.openvino",
        "runtime.cuda",
        "runtime.trt",
        "runtime.stream",
        "runtime.stream_async",
        "runtime.prometheus",
        "runtime.otel",
        "profiling.compare",
        "profiling.html",
        "profiling.report",
        "profiling.resources",
        "profiling.session",
        "profiling.files",
    ],
)
def test_device_modules_import_numpy_and_the_standard_library_only(module: str) -> None:
    code = f"""{BLOCK}
before = set(sys.modules)
import edgemm.{module}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new - set(sys.stdlib_module_names) - {{"edgemm", "numpy"}}))
"""
    # numpy's Cython parts register these two names
    foreign = [m for m in json.loads(python(code).replace("'", '"')) if not m.startswith("_cy")]
    assert [m for m in foreign if m != "cython_runtime"] == []


def test_bundle_runs_with_the_heavy_packages_blocked(bundle: Path) -> None:
    result = json.loads(python(BLOCK + RUN, str(bundle)))
    np.testing.assert_array_equal(result["out"], [[2, 2, 2, 1], [2, 2, 2, 1]])
    assert not set(result["modules"]) & set(HEAVY)
    assert "onnxruntime" in result["modules"]


def test_openvino_bundle_runs_without_onnxruntime(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    (variant,) = manifest.variants
    engines = tuple(replace(e, backend="openvino") for e in variant.engines)
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    path = tmp_path / "openvino.edgemm"
    write_bundle(path, replace(manifest, variants=(replace(variant, backend="openvino", engines=engines),)), files)
    block = BLOCK.replace("['torch'", "['onnxruntime', 'torch'")
    result = json.loads(python(block + RUN, str(path)))
    np.testing.assert_array_equal(result["out"], [[2, 2, 2, 1], [2, 2, 2, 1]])
    assert not set(result["modules"]) & {"onnxruntime", *HEAVY}


def test_onnxruntime_is_named_when_it_is_missing(bundle: Path) -> None:
    code = BLOCK.replace("['torch'", "['onnxruntime', 'torch'") + (
        "from edgemm.runtime import open_session\n"
        "from edgemm.errors import MissingExtraError\n"
        "try:\n"
        "    open_session(sys.argv[1])\n"
        "except MissingExtraError as error:\n"
        "    print(error, error.hint)\n"
    )
    answer = python(code, str(bundle))
    assert "the package 'onnxruntime' is needed to run this engine" in answer
    assert "pip install 'edgemm[cpu]'" in answer


def test_bundle_runs_where_only_numpy_and_onnxruntime_are_installed(bundle: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    interpreter = str(environment / "bin" / "python")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "numpy", "onnxruntime"], check=True)
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
    assert list(environment.rglob("edgemm/profiling/page.html")), "the page of a profile is not in the wheel"
    installed = subprocess.run(
        [interpreter, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {p["name"].lower().replace("-", "_") for p in json.loads(installed.stdout)}
    assert {"numpy", "onnxruntime", "edgemm"} <= names
    assert not names & set(HEAVY)
    result = json.loads(python(RUN, str(bundle), interpreter=interpreter, cwd=tmp_path))
    np.testing.assert_array_equal(result["out"], [[2, 2, 2, 1], [2, 2, 2, 1]])
    assert not set(result["modules"]) & set(HEAVY)


@pytest.mark.parametrize("file", device_files(), ids=str)
def test_device_files_are_python_3_10(file: Path) -> None:
    """JetPack 6 has Python 3.10."""
    ast.parse((ROOT / file).read_text(encoding="utf-8"), str(file), feature_version=(3, 10))
