"""What of the session the real TensorRT-RTX shows without a GPU: its classes take ours, its refusals are told."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from rtx import SKIP

from edgemm.errors import BackendError
from edgemm.runtime._trt.execution import make_allocator
from edgemm.runtime._trt.loading import load_engine
from edgemm.runtime._trt.module import has, load_module
from edgemm.runtime._trt.sidecar import Sidecar
from edgemm.runtime.session import SessionOptions

pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP)

NOTHING: dict[str, Any] = {
    "compute_capabilities": (86,),
    "device": {},
    "stage": "model",
    "modalities": (),
    "inputs": (),
    "outputs": (),
    "profiles": (),
    "onnx_sha256": "",
    "options": {},
    "typing": "strong",
    "layers": (),
    "precisions": {},
    "weights": {},
    "size": 0,
    "size_limit": None,
    "sha256": "",
    "seconds": 0.0,
}


def test_allocator_is_one_of_tensorrts() -> None:
    trt = load_module("tensorrt_rtx")
    allocator = make_allocator(trt)
    assert isinstance(allocator, trt.IOutputAllocator)
    assert allocator.reallocate_output_async("y", 0, 16, 256, 0) == 0  # no run is under way
    allocator.notify_shape("y", trt.Dims([2, 3]))
    assert allocator.shapes == {"y": (2, 3)}
    del allocator
    gc.collect()


@pytest.mark.parametrize("content", [b"", b"no engine at all" * 100])
def test_what_is_no_engine_is_refused(content: bytes, tmp_path: Path) -> None:
    trt = load_module("tensorrt_rtx")
    file = tmp_path / "model.engine"
    file.write_bytes(content)
    sidecar = Sidecar(flavour="tensorrt_rtx", version=trt.__version__, **NOTHING)
    with pytest.raises(
        BackendError, match=r"TensorRT-RTX [\d.]+ does not load engine 'model.engine': .+"
    ) as caught:
        load_engine(trt, file, sidecar, file.read_bytes(), SessionOptions())
    assert "edgemm build" in caught.value.hint


def test_what_the_session_calls_is_there() -> None:
    trt = load_module("tensorrt_rtx")
    for member in (
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeConfig.cuda_graph_strategy",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "IRuntimeCache.serialize",
        "ICudaEngine.device_memory_size_v2",
        "ICudaEngine.weight_streaming_budget_v2",
        "IExecutionContext.set_optimization_profile_async",
    ):
        assert has(trt, member), member
