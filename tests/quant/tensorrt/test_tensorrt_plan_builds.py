"""Plans for TensorRT, built by the real TensorRT-RTX for GPUs that are not here: `make test-rtx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from builders import onnx_graph
from plan_models import Prepared, applied
from rtx import SKIP

from edgemm.backends._trt.onnx_file import read_onnx
from edgemm.backends.tensorrt import BuildRequest, SizeRange, build_engine, make_profiles
from edgemm.partition import StageGraph, partition
from edgemm.quant.collect import collect
from edgemm.quant.plan import QuantPlan
from edgemm.quant.tensorrt.placement import plan_tensorrt, tensors_to_watch

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


SMS = {"int8": (89, 120), "fp8": (89, 120), "int4-weight": (86, 120), "fp16": (89, 120)}
NAMES = {"int4-weight": "int4"}
SIDE = 1024

WIDE = f"""wide (float[batch,4,{SIDE}] a, float[batch,4,{SIDE}] b) => (float[batch,4,{SIDE}] y)
{{ p = MatMul(a, wa)  q = MatMul(b, wb)  both = Add(p, q)  r = Relu(both)  y = MatMul(r, wc) }}"""


@pytest.fixture(scope="module")
def large() -> Prepared:
    """Three products of 1024 × 1024."""
    random = np.random.default_rng(0)
    arrays = {n: random.standard_normal((SIDE, SIDE)).astype(np.float32) / 32 for n in ("wa", "wb", "wc")}
    graph = onnx_graph(WIDE, weights=arrays)
    stages = partition(graph)
    samples = [{n: random.standard_normal((4, SIDE)).astype(np.float32) for n in "ab"} for _ in range(4)]
    return graph, stages, collect(stages, graph.io, samples, "minmax", tensors=tensors_to_watch)


def engine_bytes(stages: StageGraph, plan: QuantPlan, table: Any, low: str, folder: Path) -> tuple[int, int]:
    """Returns the sizes of the engines of all stages, and of their quantized weights."""
    sizes = quantized = 0
    for name, model in applied(stages, plan, table).items():
        file = folder / f"{name}-{low}.onnx"
        ir.save(model, file)
        planned = {NAMES.get(d.precision, d.precision) for d in plan.stage(name)} - {"fp32"}
        request = BuildRequest(
            file,
            file.with_suffix(".engine"),
            "tensorrt_rtx",
            stage=name,
            compute_capabilities=SMS[low],
            profiles=make_profiles(read_onnx(file).inputs, [{"batch": SizeRange(1, 1, 4)}]),
            precisions=tuple(sorted(planned)),
        )
        built = build_engine(request)
        assert built.sidecar.compute_capabilities == SMS[low]
        sizes += built.sidecar.size
        quantized += built.sidecar.weights["quantized"]
    return sizes, quantized


@pytest.mark.parametrize("model", ["cameras", "wide"])
@pytest.mark.parametrize("half", [None, "fp16"])
@pytest.mark.parametrize("low", ["fp8", "int4-weight"])
def test_fp8_and_int4_build(
    model: str, half: str | None, low: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, stages, table = request.getfixturevalue(model)
    plan = plan_tensorrt(stages, table, half, low=low)
    _, quantized = engine_bytes(stages, plan, table, low, tmp_path)
    assert bool(quantized) == (low in plan.counts())
    assert quantized or (model, low) == ("cameras", "int4-weight")  # convolutions, and a product of 32 rows


def test_engines_are_as_small_as_their_format(large: Prepared, tmp_path: Path) -> None:
    _, stages, table = large
    sizes = {}
    for low, bits in (("fp8", 8), ("int4-weight", 4)):
        plan = plan_tensorrt(stages, table, low=low)
        assert plan.counts()[low] == 3
        sizes[low], quantized = engine_bytes(stages, plan, table, low, tmp_path)
        assert quantized == 3 * SIDE * SIDE * bits // 8
    every = {(s.name, str(n.name)): ("half", "") for s in stages.stages for n in s.model.graph}
    sizes["fp16"], _ = engine_bytes(stages, plan_tensorrt(stages, table, no_low=every), table, "fp16", tmp_path)
    million = SIDE * SIDE
    assert sizes["fp16"] > 6 * million
    assert 3 * million < sizes["fp8"] < 0.7 * sizes["fp16"]
    assert 1.5 * million < sizes["int4-weight"] < 0.7 * sizes["fp8"]
