"""A TensorRT engine without a bundle, on a GPU whose CUDA and TensorRT are fakes: opened, profiled, refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from cuda_fake import COMPILER, FakeCuda, installed
from trt_session_fakes import VERSIONS, fake_runtime, profile, write_engine

from edgemm.errors import BackendError, BundleError, UnsupportedDeviceError
from edgemm.profiling.layers import WARMUP, profile_layers
from edgemm.runtime import SessionOptions, open_session
from edgemm.runtime._trt.sidecar import LayerPrecision, load_sidecar, sidecar_file

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the fake CUDA runtime is compiled with cc")

DEVICE = {"device": {"name": "Fake GPU 0", "multiprocessors": 16}}
MODEL = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["": 20]>
    g (float[batch,time,4] sound) => (float[batch,time,3] y) {
        [dense] p = MatMul(sound, w)
        [act] r = Relu(p)
        y = Neg(r)
    }"""
)
MODEL.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
MODEL.graph.value_info.append(onnx.helper.make_tensor_value_info("p", 1, ["batch", "time", 3]))
MODEL.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'body.fc', 'linear']")
MODEL.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'body.act', 'relu']")
PROFILE = profile(sound=((1, 2, 4), (1, 50, 4), (8, 99, 4)))
FUSED = "dense + act"
LAYERS = tuple(LayerPrecision(n, "UNARY", n, ("float32",)) for n in ("dense", "act", "tail"))


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with installed() as fake:
        yield fake


@pytest.fixture
def write(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write_(api: str = "tensorrt-10.3.0", /, *, machine: Any = None, **changes: Any) -> Path:
        trt = fake_runtime(api, cuda, **(machine or {}))
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        fields = {"stage": "sound", "modalities": ("sound",), "layers": LAYERS} | DEVICE | changes
        return write_engine(trt, MODEL, tmp_path, profiles=[PROFILE], **fields)

    return write_


@pytest.mark.parametrize("version", VERSIONS)
def test_opens_and_runs(version: str, write: Any) -> None:
    file = write(version)
    feed = {"sound": np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)}
    with open_session(file) as session:
        assert [str(i) for i in session.io.inputs] == ["sound[batch,time,4] float32"]
        assert (session.io.batch, session.io.modality_names()) == ("batch", ("sound",))
        assert session.choice is not None
        assert (session.choice.backend, session.choice.engines) == ("tensorrt", (file.name,))
        assert session.stages[0].name == "sound"
        sums = feed["sound"].sum(-1, keepdims=True)
        np.testing.assert_allclose(session.run(feed)["y"], -np.maximum(sums, 0).repeat(3, -1), rtol=1e-5)
        assert session.manifest.info["dynamic"]["dynamic"] == [
            {"symbol": "batch", "checked": [1]},
            {"symbol": "time", "checked": [50]},
        ]


def test_plan_is_a_name_for_it_too(write: Any, tmp_path: Path) -> None:
    file = write()
    plan = tmp_path / "model.plan"
    sidecar_file(file).rename(sidecar_file(plan))
    file.rename(plan)
    with open_session(plan) as session:
        assert session.run({"sound": np.ones((1, 2, 4), np.float32)})["y"].shape == (1, 2, 3)


def test_without_a_sidecar(write: Any) -> None:
    file = write()
    sidecar_file(file).unlink()
    with pytest.raises(
        BackendError, match=r"expected its sidecar 'model\.0123456789ab\.engine\.json' beside it"
    ) as caught:
        open_session(file)
    assert str(file) in str(caught.value)
    assert "edgemm build" in caught.value.hint


def test_without_the_engine(write: Any) -> None:
    file = write()
    file.unlink()
    with pytest.raises((BackendError, BundleError), match=r"model\.0123456789ab\.engine"):
        open_session(file)


def test_without_a_gpu(write: Any, cuda: FakeCuda) -> None:
    file = write()
    cuda.machine(devices=0)
    with pytest.raises(UnsupportedDeviceError, match="expected 'Fake GPU 0', got no GPU that runs it") as caught:
        open_session(file)
    assert "open the .onnx file" in caught.value.hint
    file = write(device={})
    with pytest.raises(UnsupportedDeviceError, match=r"expected an NVIDIA GPU of compute capability 8\.7"):
        open_session(file)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compute_capabilities": (75,)}, "was built for SM 75, 'Fake GPU 0' has SM 87"),
        ({"version": "10.1.0"}, "was built by TensorRT 10.1.0, here is 10.3.0"),
        ({"device": {"name": "Orin", "multiprocessors": 8}}, "was built on 'Orin' with 8 multiprocessors"),
    ],
)
def test_built_for_another_machine(write: Any, changes: Any, reason: str) -> None:
    with pytest.raises(UnsupportedDeviceError, match=reason) as caught:
        open_session(write(**changes))
    assert "edgemm build" in caught.value.hint


def test_another_target_is_refused(write: Any) -> None:
    with pytest.raises(BundleError, match="an engine file runs on the GPU that it was built for, not on 'cpu'"):
        open_session(write(), target="cpu")


def profiled(file: Path, runs: int = 12) -> dict[str, Any]:
    def open_(options: SessionOptions) -> Any:
        return open_session(file, options=options)

    return profile_layers(open_, file.parent, [{"sound": np.ones((2, 7, 4), np.float32)}], runs=runs)


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_by_the_profiler(version: str, write: Any) -> None:
    """The fused layer by its name, the one that TensorRT put in has no module."""
    layers = {FUSED: 0.3, "Reformatting CopyNode for Input Tensor 0 to tail": 0.1}
    file = write(version, machine={"layers": layers})
    found = profiled(file)
    fused, inserted = found["layers"]
    assert (fused["name"], fused["module"], fused["stage"]) == (FUSED, "body.fc", "sound")
    assert fused["nodes"] == ["dense", "act"]
    assert fused["p50_ms"] == pytest.approx(0.3)
    assert fused["flops"] == 2 * 2 * 7 * 4 * 3
    assert fused["bytes"] == 4 * (2 * 7 * 4 + 4 * 3 + 2 * 7 * 3)
    assert (inserted["module"], inserted["op"]) == (None, "inserted")
    assert found["profiled"]["unmapped_share"] == pytest.approx(0.25)
    assert found["profiled"]["engines"][0]["runs"] == 12
    assert found["roofline"]["peaks"] == [
        {"engine": "sound", "unavailable": "the peak of a machine is measured through onnxruntime or openvino"}
    ]


def test_an_inspector_tells_more_than_names(write: Any) -> None:
    told = {"Name": "__myl_DenseRelu_0", "Metadata": "[ONNX Layer: dense]\x1f[ONNX Layer: act]"}
    machine = {"layers": {"__myl_DenseRelu_0": 0.2}, "inspection": json.dumps({"Layers": [told, "a name"]})}
    (layer,) = profiled(write(machine=machine))["layers"]
    assert (layer["module"], layer["nodes"]) == ("body.fc", ["dense", "act"])


def test_the_first_runs_are_left_out(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(machine={"layers": {"dense": 1.0}})
    machine = sys.modules["tensorrt"].machine
    calls = 0

    class Warming(dict[str, float]):
        def items(self) -> Any:
            nonlocal calls
            calls += 1
            return {"dense": 100.0 if calls <= WARMUP else 1.0}.items()

    machine.layers = Warming()
    (layer,) = profiled(file)["layers"]
    assert layer["p50_ms"] == layer["mean_ms"] == 1.0


def test_a_profiled_session_replays_nothing(write: Any, cuda: FakeCuda, tmp_path: Path) -> None:
    """A replayed CUDA graph reports no layers."""
    file = write(machine={"layers": {"dense": 1.0}})
    options = SessionOptions(profile_to=str(tmp_path / "p"), cuda_graphs=True)
    with open_session(file, options=options) as session:
        for _ in range(4):
            session.run({"sound": np.ones((1, 2, 4), np.float32)})
    assert cuda.counts["cudaGraphLaunch"] == 0
    (written,) = tmp_path.glob("p-*.json")
    assert json.loads(written.read_text())["layers"][0]["ms"] == [1.0] * 4
    assert load_sidecar(file).stage == "sound"
