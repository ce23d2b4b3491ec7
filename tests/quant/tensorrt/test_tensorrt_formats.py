"""Fp8 and int4 weights for TensorRT: their arithmetic, where they go, and what ONNX Runtime computes with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from builders import onnx_graph, random_feed
from plan_models import applied
from test_rehearse import weights_that_are_dequantized
from test_tensorrt_plan import of, run

from edgemm.backends.targets import find_target
from edgemm.errors import QuantizationError
from edgemm.lint import lint
from edgemm.partition import StageGraph, partition
from edgemm.quant.collect import collect
from edgemm.quant.plan import FP8, INT8, WEIGHT4, QuantPlan
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensorrt.apply import apply_tensorrt
from edgemm.quant.tensorrt.formats import fp8_weight, int4_blocks, raise_opset
from edgemm.quant.tensorrt.placement import plan_tensorrt, tensors_to_watch
from edgemm.quant.tensorrt.rehearse import rehearse

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


def test_the_error_of_fp8_is_relative_over_fifteen_octaves() -> None:
    octaves = np.exp2(np.linspace(0, -14.5, 400)).astype(np.float32)
    for channel in (1.0, 300.0, 1e-2):
        weight = channel * np.stack([octaves, -octaves])
        q, scales = fp8_weight(weight, 0)
        assert q.dtype == FLOAT8
        assert scales.shape == (2,)
        found = q.astype(np.float32) * scales[:, None]
        kept = np.abs(weight) > np.exp2(-6) * scales[:, None]  # above the subnormal numbers
        assert kept.mean() > 0.5
        assert (np.abs(found - weight)[kept] <= np.abs(weight)[kept] / 16 * 1.0001).all()
    assert (fp8_weight(np.full((4, 4), 1e-6, np.float32), 1)[1] == 2.0**-14).all()  # fp16 has its digits
    assert not fp8_weight(np.zeros((4, 4), np.float32), 1)[0].astype(np.float32).any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int4_is_within_half_a_step_of_its_block(axis: int, dtype: type) -> None:
    random = np.random.default_rng(1)
    weight = random.standard_normal((256, 128)).astype(np.float32)
    weight[:64] *= 100  # one scale for all of a column would lose the rest
    weight = weight if axis == 0 else np.ascontiguousarray(weight.T)
    q, scales = int4_blocks(weight, axis, 64, np.dtype(dtype))
    assert (q.dtype, scales.dtype) == (ml_dtypes.int4, dtype)
    assert scales.shape == ((4, 128) if axis == 0 else (128, 4))
    wide = np.repeat(scales.astype(np.float32), 64, axis)
    assert (np.abs(q.astype(np.float32) * wide - weight) <= 0.505 * wide).all()
    zeros, ones = int4_blocks(np.zeros((64, 2), np.float32), 0, 64, np.dtype(dtype))
    assert not zeros.astype(np.float32).any()
    assert (ones == 1).all()
    with pytest.raises(QuantizationError, match="got blocks of 64, expected a divisor of 96"):
        int4_blocks(np.zeros((96, 2), np.float32), 0, 64, np.dtype(dtype))


@pytest.mark.parametrize("half", [None, "fp16"])
@pytest.mark.parametrize(
    ("model", "low", "count", "error"),
    [("cameras", FP8, 6, 0.03), ("wide", FP8, 3, 0.1), ("wide", WEIGHT4, 3, 0.15)],
)
def test_the_answers_are_those_of_float(
    model: str, low: str, count: int, error: float, half: str | None, request: pytest.FixtureRequest
) -> None:
    graph, stages, table = request.getfixturevalue(model)
    plan = plan_tensorrt(stages, table, half, low=low)
    assert len(of(plan, precision=low)) == count
    assert {d.options["float"] for d in of(plan, precision=low)} == {half or "fp32"}
    assert not of(plan, precision=INT8)
    models = applied(stages, plan, table)
    quick = {name: rehearse(m) for name, m in models.items()}
    assert sum(map(weights_that_are_dequantized, models.values())) == count
    assert sum(map(weights_that_are_dequantized, quick.values())) == 0
    feed = random_feed(graph, 8, 99)
    floats = {s.name: s.model for s in stages.stages}
    a, b, c = (run(stages, m, feed)["y"] for m in (floats, models, quick))
    largest = np.abs(a).max()
    assert 0 < np.abs(a - b).max() < error * largest
    assert np.abs(c - b).max() < 0.01 * largest
    assert QuantPlan.from_json(plan.to_json()) == plan


def test_int4_computes_with_the_stored_weights(wide: Any) -> None:
    graph, stages, table = wide
    plan = plan_tensorrt(stages, table, None, low=WEIGHT4)
    models = applied(stages, plan, table)
    rounded = {s.name: s.model.clone() for s in stages.stages}
    blocks = 0
    for name, model in models.items():
        assert (model.opset_imports[""], model.ir_version) == (21, 10)
        for node in model.graph:
            if node.op_type == "DequantizeLinear":
                q, scales = (node.inputs[i].const_value.numpy() for i in (0, 1))  # type: ignore[union-attr]
                block = node.attributes["block_size"].as_int()
                axis = node.attributes["axis"].as_int()
                source = str(node.inputs[0].name).removesuffix("/int4")  # type: ignore[union-attr]
                array = q.astype(np.float32) * np.repeat(scales, block, axis)
                value = rounded[name].graph.initializers[source]
                value.const_value = ir.tensor(array, name=source)
                blocks += scales.size
    assert blocks == (128 * 256 + 128 * 192 + 448 * 64) // 64
    feed = random_feed(graph, 4, 3)
    np.testing.assert_allclose(run(stages, models, feed)["y"], run(stages, rounded, feed)["y"], atol=1e-5)


def test_scales_of_fp8_keep_the_largest_value_that_was_seen(cameras: Any) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table, None, low=FP8)
    checked = 0
    for stage in stages.stages:
        for node in apply_tensorrt(stage, plan, table).graph:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scale, zero = (node.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]
            assert zero.dtype == FLOAT8
            assert not zero.astype(np.float32).any()
            if node.op_type == "QuantizeLinear":
                found = table.ranges.get(f"{stage.name}:{node.inputs[0].name}")  # type: ignore[union-attr]
                if found is not None:
                    peak = max(abs(found.seen_low), abs(found.seen_high))
                    assert float(scale) == pytest.approx(peak / 448, rel=1e-6)
                    checked += 1
    assert checked >= 3
    assert {(d.op, d.rule) for d in plan.decisions} >= {("Conv", "grouped-conv"), ("Gemm", "too-few-channels")}


def one_product(opset: int = 20) -> tuple[StageGraph, CalibrationTable]:
    """Returns a product of 64 × 64 whose input calibration saw in [−2, 2]."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    header = f'<ir_version: 8, opset_import: ["": {opset}]>'
    text = f"{header} g (float[batch,4,64] x) => (float[batch,4,64] y) {{ y = MatMul(x, w) }}"
    graph = onnx_graph(text, weights={"w": weight})
    stages = partition(graph)
    ramp = np.linspace(-2, 2, 256, dtype=np.float32).reshape(4, 64)
    return stages, collect(stages, graph.io, [{"x": ramp}], "mse", tensors=tensors_to_watch)


@pytest.mark.parametrize("half", [None, "fp16"])
def test_values_beyond_calibration_saturate(half: str | None) -> None:
    stages, table = one_product()
    models = applied(stages, plan_tensorrt(stages, table, half, low=FP8), table)
    at, beyond = (run(stages, models, {"x": np.full((1, 4, 64), x, np.float32)})["y"] for x in (2.0, 900.0))
    assert np.isfinite(at).all()
    np.testing.assert_array_equal(at, beyond)


@pytest.mark.parametrize(("low", "opset"), [(FP8, 19), (WEIGHT4, 21)])
def test_an_older_opset_is_raised_and_one_that_is_too_old_refused(low: str, opset: int) -> None:
    stages, table = one_product(18)
    (model,) = applied(stages, plan_tensorrt(stages, table, low=low), table).values()
    assert (model.opset_imports[""], model.ir_version) == (opset, 10)
    assert stages.stages[0].model.opset_imports[""] == 18
    feed = {"x": np.random.default_rng(2).uniform(-2, 2, (3, 4, 64)).astype(np.float32)}
    a, b = (run(stages, {stages.stages[0].name: m}, feed)["y"] for m in (stages.stages[0].model, model))
    assert np.abs(a - b).max() < 0.15 * np.abs(a).max()
    stages, table = one_product(17)
    with pytest.raises(QuantizationError, match=rf"opset 17; this precision needs {opset}") as caught:
        applied(stages, plan_tensorrt(stages, table, low=low), table)
    assert "onnx.version_converter" in caught.value.hint
    raise_opset(stages.stages[0].model, 17)  # nothing to do


@pytest.mark.parametrize(
    ("low", "has", "lacks"), [(FP8, "rtx-ada", "rtx-ampere"), (WEIGHT4, "rtx-ampere", "rtx-turing")]
)
def test_the_lint_refuses_them_where_they_do_not_exist(wide: Any, low: str, has: str, lacks: str) -> None:
    _, stages, table = wide
    for model in applied(stages, plan_tensorrt(stages, table, low=low), table).values():
        assert not [f for f in lint(model, find_target(has)) if f.severity in ("error", "warning")]
        assert "precision" in {f.rule for f in lint(model, find_target(lacks)) if f.severity == "error"}


def test_formats_meet_in_an_edited_plan(wide: Any) -> None:
    graph, stages, table = wide
    plan = plan_tensorrt(stages, table, low=FP8)
    first, _, third = of(plan, precision=FP8)
    edited = {first.node: INT8, third.node: WEIGHT4}
    decisions = tuple(replace(d, precision=edited.get(d.node, d.precision)) for d in plan.decisions)
    mixed = replace(plan, decisions=decisions)
    models = applied(stages, mixed, table)
    kinds = {str(v.dtype) for m in models.values() for n in m.graph for v in n.inputs if v is not None}
    assert {"INT8", "FLOAT8E4M3FN", "INT4"} <= kinds
    feed = random_feed(graph, 4, 5)
    a = run(stages, {s.name: s.model for s in stages.stages}, feed)["y"]
    assert 0 < np.abs(a - run(stages, models, feed)["y"]).max() < 0.15 * np.abs(a).max()


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("MatMul", {"precision": WEIGHT4, "options": {"block_size": 32}}, "got block size 32, expected 64 or 128"),
        ("Relu", {"precision": FP8}, "got precision 'fp8', expected fp32, fp16 or bf16"),
        ("Add", {"precision": WEIGHT4}, "got precision 'int4-weight', expected fp32, fp16 or bf16"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(wide: Any, op: str, change: dict[str, Any], message: str) -> None:
    _, stages, table = wide
    plan = plan_tensorrt(stages, table, low=FP8)
    wrong = replace(of(plan, op=op)[0], **change)
    stage = next(s for s in stages.stages if s.name == wrong.stage)
    with pytest.raises(QuantizationError, match=message):
        apply_tensorrt(stage, replace(plan, decisions=(wrong,)), table)


def test_there_are_three_low_precisions(wide: Any) -> None:
    _, stages, table = wide
    with pytest.raises(QuantizationError, match="no low precision 'fp4'"):
        plan_tensorrt(stages, table, low="fp4")
