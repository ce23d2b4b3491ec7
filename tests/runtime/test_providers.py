"""Options for ONNX Runtime's GPU providers, and that none is taken for another, with what is installed here."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgemm.errors import BackendError, BundleError, MissingExtraError, UnsupportedDeviceError
from edgemm.runtime import open_session, providers
from edgemm.runtime._trt.sidecar import OptimizationProfile
from edgemm.runtime.provider_options import cuda_options, rtx_options, tensorrt_options
from edgemm.runtime.providers import (
    CPU,
    CUDA,
    RTX,
    RTX_PLUGIN,
    TENSORRT,
    OrtCudaSession,
    OrtRtxSession,
    OrtTensorRtSession,
    check_taken,
)
from edgemm.runtime.session import SessionOptions
from edgemm.tensors import ShapeRange

AVAILABLE = ort.get_available_providers()
TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n,2] x) => (float[n,2] y) { a = Neg(x) y = Exp(a) }"""


def profile(largest: int, **more: Any) -> dict[str, Any]:
    shapes = {
        "image": ShapeRange((1, 3, 8), (2, 3, 8), (largest, 3, 8)),
        "ids": ShapeRange((1, 1), (2, 7), (4, 9)),
    }
    return json.loads(json.dumps(OptimizationProfile(shapes | more).to_json()))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


# --- options ---


def test_tensorrt_options_follow_the_plan(tmp_path: Path) -> None:
    plan = {"precisions": ["fp16", "int8"], "profiles": [profile(4)], "build": {}}
    assert tensorrt_options(plan, 1, tmp_path) == {
        "device_id": "1",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "True",
        "trt_cuda_graph_enable": "False",
        "trt_profile_min_shapes": "ids:1x1,image:1x3x8",
        "trt_profile_opt_shapes": "ids:2x7,image:2x3x8",
        "trt_profile_max_shapes": "ids:4x9,image:4x3x8",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
    }


def test_precisions_that_a_graph_has_not_stay_off() -> None:
    off = {"trt_fp16_enable": "False", "trt_int8_enable": "False"}
    assert tensorrt_options({}) == {"device_id": "0", "trt_cuda_graph_enable": "False", **off}
    assert tensorrt_options({"precisions": ["bf16"]})["trt_bf16_enable"] == "True"
    assert "trt_bf16_enable" not in tensorrt_options({"precisions": ["int8", "fp8"]})


def test_builder_options_become_provider_options() -> None:
    build = {
        "workspace": 2**28,
        "optimization_level": 5,
        "sparse_weights": True,
        "hardware_compatibility": "ampere-plus",
        "dla_core": 0,
        "tf32": False,
    }
    plain = tensorrt_options({})
    assert {k: v for k, v in tensorrt_options({"build": build}).items() if k not in plain} == {
        "trt_max_workspace_size": "268435456",
        "trt_builder_optimization_level": "5",
        "trt_sparsity_enable": "True",
        "trt_engine_hw_compatible": "True",
        "trt_dla_enable": "True",
        "trt_dla_core": "0",
    }
    assert cuda_options({"build": build}, 2) == {"device_id": "2", "enable_cuda_graph": "0", "use_tf32": "0"}
    assert cuda_options({}) == {"device_id": "0", "enable_cuda_graph": "0"}


def test_rtx_options(tmp_path: Path) -> None:
    assert rtx_options({"build": {"workspace": 1}}) == {
        "device_id": "0",
        "enable_cuda_graph": "0",
        "nv_max_workspace_size": "1",
    }
    assert rtx_options({"profiles": [profile(4), profile(8)]}, cache=tmp_path) == {
        "device_id": "0",
        "enable_cuda_graph": "0",
        "nv_profile_min_shapes": "ids:1x1,image:1x3x8,ids:1x1,image:1x3x8",
        "nv_profile_opt_shapes": "ids:2x7,image:2x3x8,ids:2x7,image:2x3x8",
        "nv_profile_max_shapes": "ids:4x9,image:4x3x8,ids:4x9,image:8x3x8",
        "nv_multi_profile_enable": "1",
        "nv_runtime_cache_path": str(tmp_path),
    }


@pytest.mark.parametrize("name", ["x:0", "a,b"])
def test_names_that_the_format_cannot_hold_leave_shapes_to_the_provider(name: str) -> None:
    plan = {"profiles": [profile(4, **{name: ShapeRange((1,), (1,), (2,))})]}
    assert not any("profile" in option for option in tensorrt_options(plan))
    assert not any("profile" in option for option in rtx_options(plan))


# --- what this machine's ONNX Runtime says ---


@pytest.mark.parametrize(("kind", "provider"), [(OrtCudaSession, CUDA), (OrtTensorRtSession, TENSORRT)])
def test_provider_that_this_build_lacks_is_refused(graph: Path, kind: Any, provider: str) -> None:
    if provider in AVAILABLE:
        pytest.skip(f"this ONNX Runtime has {provider}")
    with pytest.raises(
        MissingExtraError, match=f"as it is installed here has no {provider} \\(it has .*{CPU}"
    ) as e:
        kind(graph, SessionOptions())
    assert "edgemm[gpu]" in e.value.hint


@pytest.mark.skipif(importlib.util.find_spec(RTX_PLUGIN) is not None or RTX in AVAILABLE, reason="it is here")
def test_plugin_that_is_not_installed(graph: Path) -> None:
    with pytest.raises(MissingExtraError, match=f"has no {RTX}, and its plugin does not import") as caught:
        OrtRtxSession(graph, SessionOptions())
    assert "onnxruntime-ep-nv-tensorrt-rtx" in caught.value.hint


@pytest.mark.skipif(
    importlib.util.find_spec(RTX_PLUGIN) is None, reason="pip install onnxruntime-ep-nv-tensorrt-rtx"
)
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver here")
def test_plugin_without_a_driver(graph: Path) -> None:
    for _ in range(2):
        with pytest.raises(UnsupportedDeviceError, match=r"does not load|finds no GPU"):
            OrtRtxSession(graph, SessionOptions())


@pytest.mark.skipif(CUDA not in AVAILABLE, reason="pip install onnxruntime-gpu")
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver here")
@pytest.mark.parametrize("kind", [OrtCudaSession, OrtTensorRtSession])
def test_silent_fall_back_to_the_cpu_is_an_error(graph: Path, tmp_path: Path, kind: Any) -> None:
    with pytest.raises(UnsupportedDeviceError, match=r"did not start|install TensorRT libraries") as caught:
        kind(graph, SessionOptions(cache=tmp_path / "cache"))
    assert "where the loader finds them" in caught.value.hint


def test_targets_of_a_bare_onnx_file(graph: Path) -> None:
    if CUDA not in AVAILABLE:
        with pytest.raises(MissingExtraError, match=CUDA):
            open_session(graph, target="cuda")
    with pytest.raises(BundleError, match=r"not on 'rtx-ampere' \(targets: ort-tensorrt, ort-rtx, cuda, cpu\)"):
        open_session(graph, target="rtx-ampere")
    with open_session(graph, target="cpu") as session:
        assert session.choice is not None
        assert session.choice.backend == "onnxruntime"


def recorded(graph: Path, *names: str) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(graph, settings, providers=list(names))


def test_session_that_a_provider_has_not_taken(graph: Path) -> None:
    check_taken(recorded(graph, CPU), CPU, "g")
    with pytest.raises(UnsupportedDeviceError, match=f"{CUDA} did not start; ONNX Runtime would have used {CPU}"):
        check_taken(recorded(graph, CPU), CUDA, "g")


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="no provider here that takes no node")
@pytest.mark.skipif(not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"), reason="too old")
def test_provider_that_starts_and_takes_nothing(graph: Path) -> None:
    with pytest.raises(
        UnsupportedDeviceError, match=rf"AzureExecutionProvider took none of its nodes \({CPU} 2\)"
    ):
        check_taken(recorded(graph, "AzureExecutionProvider", CPU), "AzureExecutionProvider", "g")


# --- the way a session opens, on the provider that every build has ---


class OnCpu(OrtTensorRtSession):
    """The TensorRT session with the CPU's provider in its place."""

    provider = CPU
    caches: list[Path | None]

    def _providers(self, ort: Any, options: SessionOptions, cache: Path | None) -> list[tuple[str, Any]]:
        assert [name for name, _ in super()._providers(ort, options, cache)][-1] == CPU
        self.caches = [*getattr(self, "caches", []), cache]
        if cache is not None and any(cache.iterdir()):
            raise RuntimeError("TensorRT EP could not deserialize engine from cache: /src/a.cc:12 f(int) broken")
        return [(CPU, {})]


def test_session_runs_and_keeps_to_its_cache_folder(graph: Path, tmp_path: Path) -> None:
    options = SessionOptions(cache=tmp_path / "cache").for_engine({"module": "tensorrt", "precisions": ["int8"]})
    session = OnCpu(graph, options)
    x = np.ones((2, 2), np.float32)
    np.testing.assert_allclose(session.run({"x": x})[0], np.exp(-x), rtol=1e-6)
    session.close()
    (folder,) = session.caches
    assert folder is not None
    assert folder.parent == tmp_path / "cache" / CPU
    assert OnCpu(graph, options).caches == [folder]
    other = options.for_engine({"module": "tensorrt", "precisions": []})
    assert OnCpu(graph, other).caches != [folder]
    graph.write_bytes(graph.read_bytes().replace(b"Exp", b"Abs"))
    assert OnCpu(graph, options).caches != [folder]
    assert OnCpu(graph, SessionOptions()).caches == [None]


def test_cache_that_does_not_load_is_thrown_away_and_made_again(graph: Path, tmp_path: Path) -> None:
    options = SessionOptions(cache=tmp_path / "cache")
    (folder,) = OnCpu(graph, options).caches
    assert folder is not None
    (folder / "old.engine").write_bytes(b"of another TensorRT")
    assert OnCpu(graph, options).caches == [folder, folder]
    assert list(folder.iterdir()) == []


def test_cache_that_cannot_be_written_is_done_without(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert OnCpu(graph, SessionOptions(cache=tmp_path / "cache")).caches == [None]


def test_graph_that_a_provider_refuses(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"garbage")
    with pytest.raises(BackendError, match=rf"'bad\.onnx' does not open in ONNX Runtime .* on {CPU}: ") as caught:
        OnCpu(bad, SessionOptions())
    assert not isinstance(caught.value, UnsupportedDeviceError)


def test_message_of_a_missing_library(graph: Path) -> None:
    session = OnCpu(graph, SessionOptions())
    said = RuntimeError(
        "/onnxruntime_src/a/b.cc:729 void onnxruntime::python::F(P&, const ProviderOptions&) "
        "Please install TensorRT libraries as mentioned"
    )
    error = session._refused(ort, said)
    assert isinstance(error, UnsupportedDeviceError)
    assert str(error).endswith(f"on {CPU}: Please install TensorRT libraries as mentioned")
    assert providers._LIBRARIES.keys() == {CUDA, TENSORRT, RTX}
