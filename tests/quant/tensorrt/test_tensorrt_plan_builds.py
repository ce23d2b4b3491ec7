"""Plans for TensorRT, built by the real TensorRT-RTX for GPUs that are not here: `make test-rtx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from plan_models import applied
from rtx import SKIP

from edgemm.backends._trt.onnx_file import read_onnx
from edgemm.backends.tensorrt import BuildRequest, SizeRange, build_engine, make_profiles
from edgemm.quant.tensorrt.placement import plan_tensorrt

pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP)


@pytest.mark.parametrize("half", [None, "fp16", "bf16"])
def test_every_stage_builds_in_the_precisions_of_its_plan(cameras: Any, half: str | None, tmp_path: Path) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table, half)
    for name, model in applied(stages, plan, table).items():
        file = tmp_path / f"{name}.onnx"
        ir.save(model, file)
        planned = sorted({d.precision for d in plan.stage(name)} - {"fp32"})
        request = BuildRequest(
            file,
            tmp_path / f"{name}.engine",
            "tensorrt_rtx",
            stage=name,
            compute_capabilities=(86, 120),
            profiles=make_profiles(read_onnx(file).inputs, [{"batch": SizeRange(1, 1, 4)}]),
            precisions=tuple(planned),
        )
        assert build_engine(request).engine.stat().st_size > 0  # it is an error when a precision is not in it
