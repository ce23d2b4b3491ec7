"""Plans for TensorRT: where int8, fp16 and float32 go, and the graphs that they make, run by ONNX Runtime.

Its graph optimizations are off: some of them change what Q/DQ with scales in half precision compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from builders import random_feed
from plan_models import Projected, Wide, applied, prepared

from edgemm.backends.targets import find_target
from edgemm.errors import QuantizationError
from edgemm.graph import serialize
from edgemm.lint import lint
from edgemm.partition import Stage, StageGraph
from edgemm.quant.plan import FLOAT, INT8, Decision, QuantPlan
from edgemm.quant.tensorrt.apply import apply_tensorrt
from edgemm.quant.tensorrt.geometry import geometry_cone
from edgemm.quant.tensorrt.placement import plan_tensorrt

OFF = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def run(
    stages: StageGraph, models: Mapping[str, ir.Model], feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    values = dict(feed)
    for stage in stages.stages:
        proto = ir.to_proto(models[stage.name])
        onnx.checker.check_model(proto, full_check=True)
        options = ort.SessionOptions()
        options.graph_optimization_level = OFF
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in stage.outputs]
        values |= dict(zip(names, session.run(names, {i.name: values[i.name] for i in stage.inputs}), strict=True))
    return values


def of(plan: QuantPlan, **wanted: Any) -> list[Decision]:
    return [d for d in plan.decisions if all(getattr(d, k) == v for k, v in wanted.items())]


@pytest.mark.parametrize("half", [None, "fp16"])
def test_the_answers_are_those_of_float(cameras: Any, half: str | None) -> None:
    graph, stages, table = cameras
    plan = plan_tensorrt(stages, table, half)
    models = applied(stages, plan, table)
    floats = {s.name: s.model for s in stages.stages}
    feed = random_feed(graph, 4, 99)
    a, b = run(stages, floats, feed)["y"], run(stages, models, feed)["y"]
    error = np.abs(a - b).max() / np.abs(a).max()
    assert 0 < error < 0.05  # it is quantized, and close
    assert len(of(plan, precision=INT8)) >= 8
    for stage in stages.stages:
        kept = [(v.name, v.dtype) for v in models[stage.name].graph.outputs]
        assert kept == [(o.name, ir.DataType.FLOAT) for o in stage.outputs]


@pytest.mark.parametrize("half", [None, "fp16", "bf16"])
@pytest.mark.parametrize("target", ["rtx-ampere", "jetson-orin-nano"])
def test_the_lint_finds_nothing(cameras: Any, half: str | None, target: str) -> None:
    _, stages, table = cameras
    models = applied(stages, plan_tensorrt(stages, table, half), table)
    for model in models.values():
        found = [f for f in lint(model, find_target(target)) if f.severity == "error"]
        assert not found, found


def test_scales_are_symmetric_and_positive_and_biases_float(cameras: Any) -> None:
    _, stages, table = cameras
    pairs = 0
    for model in applied(stages, plan_tensorrt(stages, table), table).values():
        for node in model.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale, zero = (node.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]
                assert not zero.any()
                assert zero.dtype == np.int8
                assert (scale > 0).all()
                pairs += 1
            if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2:
                assert node.inputs[2].const_value is not None  # type: ignore[union-attr]
    assert pairs > 20


def test_a_residual_takes_its_skip_as_integers(cameras: Any) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table, None)
    skips = of(plan, rule="residual-skip")
    assert {d.stage for d in skips} == {"left", "right"}
    models = applied(stages, plan, table)
    for decision in skips:
        add = next(n for n in models[decision.stage].graph if n.name == decision.node)
        makers = sorted(v.producer().op_type for v in add.inputs)  # type: ignore[union-attr]
        assert makers == ["Conv", "DequantizeLinear"]


def test_branches_of_a_concat_share_a_scale(cameras: Any) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table, None)
    (decision,) = of(plan, op="Concat")
    assert decision.precision == INT8
    model = applied(stages, plan, table)[decision.stage]
    concat = next(n for n in model.graph if n.name == decision.node)
    scales = {float(v.producer().inputs[1].const_value.numpy()) for v in concat.inputs}  # type: ignore[union-attr]
    (quantize,) = [u.node for u in concat.outputs[0].uses()]
    assert scales == {float(quantize.inputs[1].const_value.numpy())}  # type: ignore[union-attr]


def test_a_tensor_is_quantized_once(cameras: Any) -> None:
    _, stages, table = cameras
    for model in applied(stages, plan_tensorrt(stages, table), table).values():
        seen = [
            (n.inputs[0], float(n.inputs[1].const_value.numpy()))  # type: ignore[union-attr]
            for n in model.graph
            if n.op_type == "QuantizeLinear"
        ]
        assert len(seen) == len(set(seen))


def test_what_does_not_pay_stays_float_with_its_reason(cameras: Any) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table, None)
    rules = {(d.op, d.rule) for d in of(plan, precision=FLOAT)}
    assert rules >= {("Conv", "too-few-channels"), ("Conv", "grouped-conv"), ("Gemm", "too-few-channels")}


def test_values_that_fp16_cannot_hold_stay_float() -> None:
    example, names = (torch.rand(2, 8, 64), torch.rand(2, 4, 4)), ("features", "lidar2img")
    graph, stages, table = prepared(Projected(), example, *names)
    plan = plan_tensorrt(stages, table)
    cone = {str(n.name) for n in geometry_cone(stages)}
    assert cone
    assert {d.rule for d in plan.decisions if d.node in cone} == {"geometry"}
    feed = random_feed(graph, 1, 5)
    floats = {s.name: s.model for s in stages.stages}
    a, b = run(stages, floats, feed)["y"], run(stages, applied(stages, plan, table), feed)["y"]
    np.testing.assert_allclose(b, a, atol=0.05 * np.abs(a).max())
    _, stages, large = prepared(Projected(), example, "features", "codes", scale=300.0)
    over = of(plan_tensorrt(stages, large), rule="overflow")
    assert any(d.op == "MatMul" for d in over)
    assert all("fp16 holds 6.55e+04" in d.reason for d in over)
    assert not of(plan_tensorrt(stages, large, "bf16"), rule="overflow")


@pytest.mark.parametrize("size", [1e-7, 1e-4])
def test_values_too_small_for_a_scale_in_fp16_are_not_int8(size: float) -> None:
    model = Wide()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.mul_(size)
            layer.bias.zero_()
    graph, stages, table = prepared(model, (torch.rand(2, 4, 128), torch.rand(2, 4, 128)), "a", "b")
    plan = plan_tensorrt(stages, table)
    if size > 1e-6:
        (small,) = of(plan, rule="small-range")
        assert small.precision != INT8
        assert "fp16 does not hold the scale" in small.reason
    assert bool(of(plan, rule="underflow")) == (size < 1e-6)
    models = applied(stages, plan, table)
    for planned in models.values():
        for node in planned.graph:
            if node.op_type == "QuantizeLinear":
                assert (node.inputs[1].const_value.numpy().astype(np.float32) >= 2.0**-14).all()
    feed = random_feed(graph, 1, 5)
    floats = {s.name: s.model for s in stages.stages}
    a, b = run(stages, floats, feed)["y"], run(stages, models, feed)["y"]
    np.testing.assert_allclose(b, a, atol=0.05 * np.abs(a).max())


def test_equal_plans_give_equal_bytes(cameras: Any) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table)
    again = QuantPlan.from_json(plan.to_json())
    for stage in stages.stages:
        first, second = (serialize(apply_tensorrt(stage, p, table)) for p in (plan, again))
        assert first == second


def test_node_that_is_kept_and_halves_that_are_not_there(cameras: Any) -> None:
    _, stages, table = cameras
    first = of(plan_tensorrt(stages, table), precision=INT8, op="Conv")[0]
    keep = {(first.stage, first.node): ("by-hand", "tried")}
    kept = next(d for d in plan_tensorrt(stages, table, keep_float=keep).decisions if d.node == first.node)
    assert (kept.precision, kept.rule) == (FLOAT, "by-hand")
    with pytest.raises(QuantizationError, match="no half precision 'fp8'"):
        plan_tensorrt(stages, table, "fp8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": "gone"}, "which has no such node"),
        ({"precision": "int8-dynamic"}, "expected int8, fp8, int4-weight, fp32, fp16 or bf16"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(cameras: Any, change: dict[str, str], message: str) -> None:
    _, stages, table = cameras
    plan = plan_tensorrt(stages, table)
    stage: Stage = stages.stages[0]
    wrong = replace(next(d for d in plan.stage(stage.name) if d.precision == INT8), **change)
    with pytest.raises(QuantizationError, match=message):
        apply_tensorrt(stage, replace(plan, decisions=(wrong,)), table)
