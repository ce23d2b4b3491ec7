"""Operators that are taken to compute every sample by itself do: two batches at once give what each gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import DISABLED, onnx_graph, random_feed, run_whole
from rewriting import ops, weights

from edgemm.rewrite import batchwise, rewrite
from edgemm.rewrite.rules import batch_twins

CONSTANTS = {
    **weights(w=(4, 4), k=(4, 4, 3), m=(4, 5), r=(4,), deep=(3, 4, 3), sw=(1, 6, 4), sr=(1, 6, 2), scale=(4,)),
    **weights(lw=(1, 8, 4), lr=(1, 8, 2), gw=(1, 6, 4), row=(1, 1, 6), square=(4, 4), table=(9, 5), two=(2,)),
    "zero": np.array([0]),
    "one": np.array([1]),
    "last": np.array([2]),
    "both": np.array([1, 2]),
    "end": np.array([3]),
    "pads": np.array([0, 1, 0, 0, 0, 2]),
    "flat": np.array([-1, 24]),
    "rows": np.array([-1, 4]),
    "kept": np.array([0, 2, 2, 6]),
    "wide": np.array([1, 1, 6]),
    "picks": np.array([3, 1]),
    "place": np.array(2),
    "parts": np.array([1, 3]),
    "half": np.array(0.5, np.float32),
    "step": np.array(0.02, np.float32),
    "point": np.array(128, np.uint8),
    "tiny": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
    "points": np.array([1, 2, 3, 4], np.uint8),
}

CASES = {
    "Relu": "Relu({x})",
    "Clip": "Clip({x}, half)",
    "Add": "Add({x}, row)",
    "Where": "g{n} = Greater({x}, half) {y} = Where(g{n}, {x}, half)",
    "PRelu": "PRelu({x}, half)",
    "Conv": "Conv<pads=[1,1]>({x}, k, r)",
    "ConvTranspose": "ConvTranspose({x}, k)",
    "MaxPool": "MaxPool<kernel_shape=[2]>({x})",
    "AveragePool": "AveragePool<kernel_shape=[2]>({x})",
    "GlobalAveragePool": "GlobalAveragePool({x})",
    "BatchNormalization": "BatchNormalization({x}, scale, r, r, scale)",
    "InstanceNormalization": "InstanceNormalization({x}, scale, r)",
    "MatMul": "MatMul(square, {x})",
    "MatMul of both": "t{n} = Transpose<perm=[0,2,1]>({x}) {y} = MatMul(t{n}, {x})",
    "Gemm": "r{n} = Reshape({x}, rows) {y} = Gemm(r{n}, m)",
    "Softmax": "Softmax<axis=1>({x})",
    "LayerNormalization": "LayerNormalization<axis=2>({x}, row)",
    "LpNormalization": "LpNormalization<axis=1>({x})",
    "ReduceMean": "ReduceMean<keepdims=0>({x}, both)",
    "ReduceMax keeps": "ReduceMax({x}, one)",
    "ArgMax": "a{n} = ArgMax<axis=1>({x}) {y} = Cast<to=1>(a{n})",
    "Transpose": "Transpose<perm=[2,0,1]>({x})",
    "Unsqueeze": "Unsqueeze({x}, zero)",
    "Squeeze": "g{n} = GlobalAveragePool({x}) {y} = Squeeze(g{n}, last)",
    "Reshape": "Reshape({x}, flat)",
    "Reshape of rows": "r{n} = Reshape({x}, rows) p{n} = MatMul(r{n}, square) {y} = Reshape(p{n}, flat)",
    "Reshape into heads": "h{n} = Reshape({x}, kept) {y} = Transpose<perm=[1,0,3,2]>(h{n})",
    "Flatten": "Flatten({x})",
    "Concat": "Concat<axis=1>({x}, {x})",
    "Split": "s{n}, t{n} = Split<axis=1>({x}, parts) {y} = Mul(s{n}, t{n})",
    "Slice": "Slice({x}, one, end, last)",
    "Gather": "Gather<axis=1>({x}, picks)",
    "Gather one": "Gather<axis=1>({x}, place)",
    "Gather from a table": "a{n} = ArgMax<axis=1>({x}) {y} = Gather(table, a{n})",
    "Pad": "Pad({x}, pads)",
    "Expand": "g{n} = GlobalAveragePool({x}) {y} = Expand(g{n}, wide)",
    "QuantizeLinear": "q{n} = QuantizeLinear({x}, step, point) {y} = DequantizeLinear(q{n}, step, point)",
    "per channel": "q{n} = QuantizeLinear({x}, tiny, points) {y} = DequantizeLinear(q{n}, tiny, points)",
    "GRU": "t{n} = Transpose<perm=[2,0,1]>({x}) {y}, h{n} = GRU<hidden_size=2>(t{n}, gw, sr)",
    "LSTM": "t{n} = Transpose<perm=[2,0,1]>({x}) o{n}, h{n}, {y} = LSTM<hidden_size=2>(t{n}, lw, lr)",
}


def graph_of(case, batch):
    """Returns two sides of a convolution and the operator, fed by inputs of [batch, 4, 6]."""
    sides = []
    for n in "ab":
        body = CASES[case].format(x=f"{n}1", y=f"{n}2", n=n)
        body = body if f"{n}2" in body else f"{n}2 = {body}"
        sides.append(f"{n}1 = Conv<pads=[1,1]>({n}, k) {body} {n}3 = Mul({n}2, half) {n}4 = Flatten<axis=0>({n}3)")
    inputs = ", ".join(f"float[{batch},4,6] {n}" for n in "ab")
    outputs = "float[1,n] a4, float[1,m] b4"
    return onnx_graph(f"g ({inputs}) => ({outputs}) {{ {' '.join(sides)} }}", weights=CONSTANTS)


@pytest.mark.parametrize("batch", ["batch", "3"])
@pytest.mark.parametrize("case", CASES)
def test_two_batches_at_once_give_what_each_gives(case, batch):
    graph, _ = rewrite(graph_of(case, batch))
    model = graph.model.clone()
    assert batch_twins.apply(model, graph.io) == 1
    joined, before = [n.op_type for n in model.graph], ops(graph)
    once = {op: before.count(op) // 2 for op in before if op not in ("Flatten", "Reshape", "Split", "Concat")}
    assert {op: joined.count(op) for op in once} == once
    feed = random_feed(graph)
    expected = run_whole(graph, feed, DISABLED)
    got = run_whole(type(graph)(model, graph.io, graph.provenance), feed, DISABLED)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_rule_is_for_an_operator_of_onnx():
    known = {s.name for s in onnx.defs.get_all_schemas()}
    assert set(batchwise._RULES) <= known
