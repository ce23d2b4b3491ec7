"""Encoders that share weights run as one batch: the same numbers from fewer nodes, where that is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from builders import DISABLED, onnx_graph, random_feed, run_whole, torch_graph
from rewriting import ops, weights
from torch import nn

from edgemm.graph import digest, serialize
from edgemm.partition import partition
from edgemm.rewrite import rewrite
from edgemm.rewrite.prepare import BATCHED, batchable, prepare
from edgemm.rewrite.rules import batch_twins


def batched(graph, *, count, batches=(1, 3), level=DISABLED, tolerance=1e-5):
    """Returns the joined graph, after comparing count, outputs at every batch, signature and the checker."""
    before = digest(graph.model)
    model = graph.model.clone()
    assert batch_twins.has_twins(model) == (count > 0)
    assert batch_twins.apply(model, graph.io) == count
    joined = replace(graph, model=model)
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)
    assert digest(graph.model) == before
    assert [str(v.shape) for v in model.graph.outputs] == [str(v.shape) for v in graph.model.graph.outputs]
    for batch in batches:
        feed = random_feed(graph, batch)
        expected, got = run_whole(graph, feed, level), run_whole(joined, feed, level)
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    assert batch_twins.apply(model, graph.io) == 0
    return joined


def pair(body, inputs="float[batch,4] a, float[batch,4] b", output="float[batch,6] y", **more):
    return rewrite(onnx_graph(f"g ({inputs}) => ({output}) {{ {body} }}", weights=more))[0]


def side(name, first="w1", second="w2"):
    return f"""{name}1 = MatMul({name}, {first}) {name}2 = Relu({name}1) {name}3 = Gemm({name}2, {second}, w3)"""


W = weights(w1=(4, 8), w2=(8, 3), w3=(3,))


def test_pair_with_one_set_of_initializers_is_one_batch():
    joined = batched(pair(f"{side('a')} {side('b')} y = Concat<axis=1>(a3, b3)", **W), count=1)
    assert ops(joined) == ["Concat", "MatMul", "Relu", "Gemm", "Split", "Concat"]


def test_equal_weights_under_other_names_are_one_set():
    copies = {"v1": W["w1"].copy(), "v2": W["w2"].copy()}
    body = f"{side('a')} {side('b', 'v1', 'v2')} y = Concat<axis=1>(a3, b3)"
    assert len(ops(batched(pair(body, **W, **copies), count=1))) == 6


def test_other_weights_end_the_joined_part():
    other = {"v2": W["w2"] + 1e-6}
    body = f"{side('a')} {side('b', 'w1', 'v2')} y = Concat<axis=1>(a3, b3)"
    joined = batched(pair(body, **W, **other), count=1)
    assert ops(joined) == ["Concat", "MatMul", "Relu", "Split", "Gemm", "Gemm", "Concat"]


NOT_A_PAIR = {
    "no weight is equal": (f"{side('a')} {side('b', 'v1', 'v2')} y = Concat<axis=1>(a3, b3)", "batch", 6),
    "the batches may differ": (f"{side('a')} {side('b')} y = Concat<axis=0>(a3, b3)", "other", 3),
    "one side depends on the other": ("c = MatMul(a, v3) d = MatMul(c, v3) y = Concat<axis=1>(d, b)", "batch", 8),
}


@pytest.mark.parametrize(("body", "symbol", "width"), NOT_A_PAIR.values(), ids=NOT_A_PAIR)
def test_what_is_no_pair_stays(body, symbol, width):
    more = W | {"v1": W["w1"] + 1, "v2": W["w2"] + 1, "v3": weights(s=(4, 4))["s"]}
    output = f"float[{'n' if symbol == 'other' else 'batch'},{width}] y"
    before = pair(body, f"float[batch,4] a, float[{symbol},4] b", output, **more)
    assert ops(batched(before, count=0)) == ops(before)


@pytest.mark.parametrize(
    "mixes",
    [
        "Softmax<axis=0>({x})",
        "ReduceMean<keepdims=1>({x}, zero)",
        "CumSum({x}, none)",
        "LayerNormalization<axis=0>({x}, scale)",
        "Add({x}, rows)",
        "Reshape({x}, turned)",
        "MatMul(square, {x})",
    ],
)
def test_operator_that_mixes_samples_is_not_joined(mixes):
    """With a fixed batch of 3, so that constants and reshapes may reach into it."""
    body = " ".join(
        f"{n}1 = MatMul({n}, w1) {n}2 = {mixes.format(x=n + '1')} {n}3 = Identity({n}2)" for n in ("a", "b")
    )
    more = {
        "zero": np.array([0]),
        "none": np.array(0),
        "turned": np.array([8, 3]),
        **weights(scale=(3, 8), rows=(3, 8), square=(3, 3)),
    }
    rows = {"turned": "8,3"}.get("turned" if "turned" in mixes else "", "3,8")
    rows = "1,8" if "ReduceMean" in mixes else rows
    graph = onnx_graph(
        f"g (float[3,4] a, float[3,4] b) => (float[{rows}] a3, float[{rows}] b3) {{ {body} }}",
        weights={"w1": W["w1"], **more},
    )
    joined = batched(rewrite(graph)[0], count=1, batches=(3,))
    assert ops(joined)[:3] == ["Concat", "MatMul", "Split"]
    assert [op for op in ops(joined)[3:] if op != "Identity"] == [mixes.partition("(")[0].partition("<")[0]] * 2


def test_three_cameras_and_a_convolution():
    body = " ".join(f"{n}1 = Conv({n}, w, v) {n}2 = Relu({n}1) {n}3 = GlobalAveragePool({n}2)" for n in "abc")
    graph = onnx_graph(
        "g (float[batch,3,9,9] a, float[batch,3,9,9] b, float[batch,3,9,9] c) => (float[batch,12,1,1] y)"
        f" {{ {body} y = Concat<axis=1>(a3, b3, c3) }}",
        weights=weights(w=(4, 3, 3, 3), v=(4,)),
    )
    joined = batched(rewrite(graph)[0], count=2)
    assert ops(joined) == ["Concat", "Conv", "Relu", "GlobalAveragePool", "Split", "Concat"]


def test_two_frames_of_one_input_are_sides():
    body = """a = Gather<axis=1>(x, first) b = Gather<axis=1>(x, second)
        a1 = Conv(a, w) b1 = Conv(b, w) y = Sub(a1, b1)"""
    graph = onnx_graph(
        f"g (float[batch,2,3,9,9] x) => (float[batch,4,7,7] y) {{ {body} }}",
        weights={**weights(w=(4, 3, 3, 3)), "first": np.array(0), "second": np.array(1)},
    )
    assert ops(batched(rewrite(graph)[0], count=1)) == ["Gather", "Gather", "Concat", "Conv", "Split", "Sub"]


def test_texts_with_masks_pair_ids_with_their_own_mask():
    body = " ".join(
        f"{n}e = Gather(table, {n}) {n}f = Cast<to=1>({n}m) {n}u = Unsqueeze({n}f, last) {n}g = Mul({n}e, {n}u)"
        f" {n}h = MatMul({n}g, w1) {n}y = ReduceSum<keepdims=0>({n}h, one)"
        for n in "ab"
    )
    ints = ", ".join(f"int64[batch,length] {n}" for n in ("a", "bm", "b", "am"))
    more = {"table": weights(t=(10, 4))["t"], "last": np.array([2]), "one": np.array([1])}
    graph = onnx_graph(
        f"g ({ints}) => (float[batch,8] y) {{ {body} y = Sub(ay, by) }}", weights={"w1": W["w1"], **more}
    )
    joined = batched(rewrite(graph)[0], count=1)
    assert ops(joined).count("Concat") == 2
    assert ops(joined).count("MatMul") == 1


def test_results_and_values_in_between_that_are_outputs_keep_their_names():
    graph = pair(f"{side('a')} {side('b')}", output="float[batch,8] a2, float[batch,3] a3, float[batch,3] b3", **W)
    assert ops(batched(graph, count=1)).count("Split") == 2


def test_opset_before_num_outputs():
    text = '<ir_version: 7, opset_import: ["": 13]> g (float[batch,4] a, float[batch,4] b) => (float[batch,6] y) {'
    graph = onnx_graph(f"{text} {side('a')} {side('b')} y = Concat<axis=1>(a3, b3) }}", weights=W)
    batched(rewrite(graph)[0], count=1)


def test_recurrent_pair_keeps_the_batch_in_the_middle():
    body = " ".join(
        f"{n}t = Transpose<perm=[1,0,2]>({n}) {n}y, {n}h = GRU<hidden_size=6>({n}t, w, r)"
        f" {n}s = Squeeze({n}y, one) {n}u = Transpose<perm=[1,0,2]>({n}s) {n}m = ReduceMean<keepdims=0>({n}u, one)"
        for n in "ab"
    )
    graph = onnx_graph(
        f"g (float[batch,7,5] a, float[batch,7,5] b) => (float[batch,6] y) {{ {body} y = Sub(am, bm) }}",
        weights={**weights(w=(1, 18, 5), r=(1, 18, 6)), "one": np.array([1])},
    )
    joined = batched(rewrite(graph)[0], count=1)
    assert sorted(set(ops(joined))) == sorted(set(ops(rewrite(graph)[0])) | {"Concat", "Split"})
    assert ops(joined).count("GRU") == 1


@pytest.mark.parametrize("batch", ["batch", "1"])
def test_class_token_and_mask_join_the_batch(batch):
    body = " ".join(
        f"{n}t = Expand(token, {n}s) {n}c = Concat<axis=1>({n}t, {n}) {n}m = MatMul({n}c, w1)"
        f" {n}y = Add({n}m, {n}k)"
        for n in "ab"
    )
    shapes = " ".join(f"{n}d = Shape<start=0, end=1>({n}) {n}s = Concat<axis=0>({n}d, one, four)" for n in "ab")
    inputs = ", ".join(f"float[{batch},5,4] {n}, float[{batch},1,8] {n}k" for n in "ab")
    more = {"token": weights(t=(1, 1, 4))["t"], "one": np.array([1]), "four": np.array([4])}
    graph = onnx_graph(
        f"g ({inputs}) => (float[{batch},6,8] y) {{ {shapes} {body} y = Sub(ay, by) }}",
        weights={"w1": W["w1"], **more},
    )
    joined = batched(rewrite(graph)[0], count=1, batches=(1,) if batch == "1" else (1, 3))
    assert ops(joined).count("MatMul") == ops(joined).count("Add") == 1


def test_attention_pair_with_a_class_token():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.layers(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()

        def forward(self, a, b):
            return self.encoder(a) * self.encoder(b)

    images = {"a": torch.randn(2, 3, 8, 8), "b": torch.randn(2, 3, 8, 8)}
    graph, _ = rewrite(torch_graph(Net(), images))
    joined = batched(graph, count=1)
    assert ops(joined).count("MatMul") * 2 == ops(graph).count("MatMul")
    assert len(ops(joined)) < 0.6 * len(ops(graph))


def test_stages_of_one_encoder_each_have_nothing_to_join():
    graph = pair(f"{side('a')} {side('b')} y = Concat<axis=1>(a3, b3)", **W)
    stages = partition(graph).stages
    assert len(stages) == 3
    assert not any(batch_twins.has_twins(s.model) for s in stages)
    one = partition(replace(graph, io=replace(graph.io, modalities={"a": "camera", "b": "camera"})))
    assert sum(batch_twins.has_twins(s.model) for s in one.stages) == 1


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_batched_form_is_one_of_a_target_and_the_plain_one_stays(target):
    graph = pair(f"{side('a')} {side('b')} y = Concat<axis=1>(a3, b3)", **W)
    assert batchable(graph.model)
    plain, joined = (prepare(graph.model, t) for t in (target, target + BATCHED))
    assert [n.op_type for n in plain.graph].count("MatMul") == 2
    assert [n.op_type for n in joined.graph].count("MatMul") == 1
