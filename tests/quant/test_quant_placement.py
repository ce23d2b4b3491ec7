from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from quant_models import Cnn, chain_of, prepared

from edgemm.partition import Stage
from edgemm.quant.apply import apply_plan
from edgemm.quant.placement import plan_quantization, structure, tensors_to_calibrate, weight_bits
from edgemm.quant.plan import FLOAT, INT8
from edgemm.quant.table import TensorRange


def stage(body, weights, opset=20, inputs="float[batch,64] x", outputs="float[batch,64] y"):
    """A stage from ONNX text; every weight is an initializer of random values."""
    text = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text)) if not weights else None
    if model is None:
        extra = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items())
        text = text.replace(f"({inputs})", f"({inputs}, {extra})")
        model = ir.from_proto(onnx.parser.parse_model(text))
        for name, shape in weights.items():
            value = model.graph.inputs.pop(next(i for i, v in enumerate(model.graph.inputs) if v.name == name))
            array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
            model.graph.register_initializer(value)
    return Stage("s", ("x",), "encoder", (), (), model, len(model.graph), 0)


def rules(*args, **kwargs):
    found = [c.decision for c in structure(stage(*args, **kwargs))]
    return [(d.op, d.precision, d.rule) for d in found]


IMAGE = {"inputs": "float[batch,64,8,8] x", "outputs": "float[batch,c,h,w] y"}
SEQUENCE = {"inputs": "float[batch,64,50] x", "outputs": "float[batch,c,h] y"}
GROUPED = "y = Conv<group=64, kernel_shape=[3,3]>(x, w)"


@pytest.mark.parametrize(
    ("body", "weight", "options", "expected"),
    [
        ("y = Conv(x, w)", (32, 64, 3, 3), IMAGE, (INT8, "conv-per-channel")),
        ("y = Conv(x, w)", (4, 64, 3, 3), IMAGE, (FLOAT, "too-few-channels")),
        (
            "y = Conv(x, w)",
            (32, 3, 3, 3),
            {**IMAGE, "inputs": "float[batch,3,8,8] x"},
            (FLOAT, "too-few-channels"),
        ),
        (GROUPED, (64, 1, 3, 3), IMAGE, (FLOAT, "grouped-conv")),
        ("y = Conv<group=4>(x, w)", (64, 16, 3, 3), IMAGE, (FLOAT, "grouped-conv")),
        ("y = Conv<group=64>(x, w)", (64, 1, 3), SEQUENCE, (INT8, "depthwise-1d")),
        ("y = ConvTranspose(x, w)", (64, 32, 2, 2), IMAGE, (FLOAT, "no-integer-kernel")),
        ("y = MatMul(x, w)", (64, 256), {}, (INT8, "matmul-per-channel")),
        ("y = MatMul(x, w)", (64, 16), {}, (FLOAT, "too-few-channels")),
        ("y = MatMul(x, w)", (64, 64), {}, (FLOAT, "too-small")),
        ("y = MatMul(x, w)", (2, 64, 256), {}, (FLOAT, "weight-rank")),
        ("y = MatMul(w, x)", (64, 256), {}, (FLOAT, "no-constant-weight")),
        ("y = Gemm(x, w)", (64, 2048), {}, (INT8, "gemm-per-channel")),
        ("y = Gemm<transB=1>(x, w)", (2048, 64), {}, (INT8, "gemm-per-channel")),
        ("y = Gemm<alpha=2.0>(x, w)", (64, 2048), {}, (FLOAT, "gemm-form")),
        ("y = Gemm<transA=1>(x, w)", (64, 2048), {}, (FLOAT, "gemm-form")),
        ("y = Gemm(x, w)", (64, 64), {}, (FLOAT, "too-small")),
        ("y = MatMul(x, w)", (64, 256), {"opset": 12}, (FLOAT, "opset-too-old")),
    ],
)
def test_rules_on_the_graph(body, weight, options, expected):
    ((_, precision, rule),) = rules(body, {"w": weight}, **options)
    assert (precision, rule) == expected


def test_products_of_activations_stay_float():
    assert rules("y = MatMul(x, x)", {}) == [("MatMul", FLOAT, "no-constant-weight")]


def test_a_bias_that_is_computed_keeps_the_node_float():
    assert rules("y = Gemm(x, w, x)", {"w": (64, 2048)}) == [("Gemm", FLOAT, "no-constant-bias")]


def test_recurrent_layers_and_embeddings_are_named():
    body = "a, b = GRU<hidden_size=8>(x, w, r) y = Identity(a)"
    assert rules(body, {"w": (1, 24, 64), "r": (1, 24, 8)}, inputs="float[t,batch,64] x") == [
        ("GRU", FLOAT, "recurrent")
    ]
    assert rules("y = Gather(w, x)", {"w": (100, 64)}, inputs="int64[batch,5] x") == [
        ("Gather", FLOAT, "embedding")
    ]


def test_subgraphs_are_listed_and_left_alone():
    inner = (
        "then_branch = g1 () => (float[batch,n] a) { a = MatMul(x, w) }, "
        "else_branch = g2 () => (float[batch,n] b) { b = MatMul(x, w) }"
    )
    found = rules(f"y = If <{inner}> (c)", {"w": (64, 256)}, inputs="float[batch,64] x, bool c")
    assert found == [("MatMul", FLOAT, "in-subgraph")] * 2


def test_a_graph_that_is_quantized_already_stays_as_it_is():
    body = "q = DynamicQuantizeLinear(x) y = MatMul(x, w)"
    body = "a, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(a, s, z) y = MatMul(d, w)"
    assert rules(body, {"w": (64, 256)}) == [("MatMul", FLOAT, "already-quantized")]


def test_nodes_without_unique_names_have_decisions_of_their_own():
    found = [
        c.decision.node
        for c in structure(stage("h = MatMul(x, a) y = MatMul(h, b)", {"a": (64, 256), "b": (256, 64)}))
    ]
    assert found == ["h", "y"]


def test_quantizing_twice_finds_nothing_to_do():
    whole, table, plan = prepared(Cnn)
    again = replace(whole, model=apply_plan(whole, plan, table))
    decisions = [c.decision for c in structure(again)]
    assert {d.precision for d in decisions} == {FLOAT}
    assert tensors_to_calibrate(again) == ()


def test_rules_on_ranges():
    whole, table, plan = prepared(Cnn)
    node = next(d for d in plan.decisions if d.rule == "gemm-per-channel")
    tensor = next(n for n in whole.model.graph if n.name == node.node).inputs[0].name
    for found, rule in [
        (None, "not-calibrated"),
        (TensorRange(0, 0, 0, 0), "constant-range"),
        (TensorRange(-1e30, 1, -1e30, 1), "extreme-range"),
    ]:
        ranges = {k: v for k, v in table.ranges.items() if k != f"whole:{tensor}"}
        if found is not None:
            ranges[f"whole:{tensor}"] = found
        changed = plan_quantization(chain_of(whole), replace(table, ranges=ranges))
        decision = next(d for d in changed.decisions if d.node == node.node)
        assert (decision.precision, decision.rule) == (FLOAT, rule)


def test_joins_follow_their_neighbours():
    whole, table, plan = prepared(Cnn)
    residual = next(d for d in plan.decisions if d.rule == "residual-add")
    conv = [d for d in plan.decisions if d.op == "Conv" and d.precision == INT8]
    keep = {("whole", conv[1].node): ("accuracy-budget", "for a test")}
    changed = plan_quantization(chain_of(whole), table, keep_float=keep)
    found = {d.node: d for d in changed.decisions}
    assert found[conv[1].node].rule == "accuracy-budget"
    assert residual.node in found or residual.node not in {d.node for d in changed.decisions}
    kept = plan_quantization(chain_of(whole), table, keep_float={("whole", d.node): ("r", "r") for d in conv})
    assert residual.node not in {d.node for d in kept.decisions}


def test_decisions_are_in_graph_order_with_reasons():
    whole, _, plan = prepared(Cnn)
    order = [n.name for n in whole.model.graph]
    positions = [order.index(d.node) for d in plan.decisions]
    assert positions == sorted(positions)
    assert all(d.rule and d.reason for d in plan.decisions)
    assert plan.calibration["weight_bits"] == weight_bits()
    assert plan.calibration["samples"] == 24
