"""What needs an NVIDIA GPU: `make test-gpu`. Without one every test is skipped, and says what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgemm.errors import EdgemmError
from edgemm.runtime._trt.module import MODULES, load_module
from edgemm.runtime.cuda import Gpu, find_gpu

sys.path.append(str(Path(__file__).parents[1] / "backends"))

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    try:
        return find_gpu()
    except EdgemmError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=sorted(MODULES))
def module(request: pytest.FixtureRequest) -> str:
    """Name of a TensorRT module that is installed here."""
    try:
        load_module(request.param)
    except EdgemmError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def build(gpu: Gpu, module: str, tmp_path: Path) -> Build:
    """Builds an engine of a model for the GPU at hand, and returns its file."""
    pytest.importorskip("onnx", reason="the graphs are made with onnx: pip install 'edgemm[convert]'")
    from trt_graphs import write

    from edgemm.backends.targets import RTX_SMS
    from edgemm.backends.tensorrt import BuildOptions, BuildRequest, build_engine, make_profiles
    from edgemm.runtime.onnx_signature import read_signature

    if module == "tensorrt_rtx" and gpu.sm not in RTX_SMS:
        pytest.skip(f"TensorRT-RTX does not build for SM {gpu.sm}")

    def make(model: Any, *ranges: Any, name: str = "model", **options: Any) -> Path:
        """`ranges`: one mapping symbol -> (min, opt, max) per profile."""
        file = write(model, tmp_path, name)
        inputs, _ = read_signature(file.read_bytes(), name)
        request = BuildRequest(
            file,
            tmp_path / f"{name}.0123456789ab.engine",
            module,
            stage=name,
            compute_capabilities=(gpu.sm,),
            profiles=make_profiles(inputs, list(ranges)),
            options=BuildOptions(**options),
            device={"name": gpu.name, "multiprocessors": gpu.multiprocessors},
        )
        return build_engine(request).engine

    return make
