"""Planned graphs in a form that is quick on a CPU: what they round, and what they give, stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from builders import random_feed
from plan_models import applied

from edgemm.quant.tensorrt.placement import plan_tensorrt
from edgemm.quant.tensorrt.rehearse import LARGE, rehearse


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})
    return found


def weights_that_are_dequantized(model: ir.Model) -> int:
    nodes = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    return sum(n.inputs[0] is not None and n.inputs[0].const_value is not None for n in nodes)


@pytest.mark.parametrize("half", [None, "fp16"])
def test_answers_differ_by_less_than_a_hundredth_of_the_scale(cameras: Any, half: str | None) -> None:
    graph, stages, table = cameras
    models = applied(stages, plan_tensorrt(stages, table, half), table)
    feed = random_feed(graph, 4, 99)
    rehearsed = {name: rehearse(model) for name, model in models.items()}
    for stage in stages.stages:
        assert weights_that_are_dequantized(models[stage.name]) > 0
        assert weights_that_are_dequantized(rehearsed[stage.name]) == 0
        names = [o.name for o in stage.outputs]
        results = [run(m[stage.name], feed) for m in (models, rehearsed)]
        for a, b in zip(*results, strict=True):
            assert np.abs(a - b).max() < 0.01 * np.abs(a).max()
        feed |= dict(zip(names, results[0], strict=True))


WIDE = f"""<ir_version: 10, opset_import: ["": 20]>
wide (float[batch,8] x) => (float[batch,{LARGE // 8}] y)
{{ h = Cast<to=10>(x)  q = QuantizeLinear(h, scale, zero)  d = DequantizeLinear(q, scale, zero)
   dw = DequantizeLinear<axis=1>(w, scales, zeros)  g = Gemm(d, dw, bias)  r = Relu(g)  y = Cast<to=1>(r) }}"""


def test_sums_without_rounding_are_the_same_to_the_bit() -> None:
    random = np.random.default_rng(0)
    columns = LARGE // 8
    arrays = {
        "scale": np.float16(0.125),
        "zero": np.int8(0),
        "scales": np.exp2(random.integers(-4, 0, columns)).astype(np.float16),
        "zeros": np.zeros(columns, np.int8),
        "w": random.integers(-127, 128, (8, columns)).astype(np.int8),
        "bias": random.integers(-9, 10, columns).astype(np.float16),
    }
    proto = onnx.parser.parse_model(WIDE)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    model = ir.from_proto(proto)
    for node in model.graph:  # as the planner leaves it: types are known
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    next(n for n in model.graph if n.op_type == "QuantizeLinear").outputs[0].type = ir.TensorType(ir.DataType.INT8)
    feed = {"x": (random.integers(-40, 40, (5, 8)) / 8).astype(np.float32)}
    rehearsed = rehearse(model)
    assert [n.op_type for n in rehearsed.graph].count("DequantizeLinear") == 1
    gemm = next(n for n in rehearsed.graph if n.op_type == "Gemm")
    assert {v.const_value.dtype for v in gemm.inputs if v.const_value is not None} == {ir.DataType.FLOAT}
    np.testing.assert_array_equal(run(rehearsed, feed)[0], run(model, feed)[0])
