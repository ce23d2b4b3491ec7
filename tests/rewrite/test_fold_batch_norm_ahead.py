"""A batch norm in front of weights goes into them, exactly, borders of padded convolutions included."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import onnx_graph, random_feed
from rewriting import ops, rewrite_and_compare, weights

from edgemm.graph import serialize

STATS = weights(scale=(4,), bias=(4,), mean=(4,), var=(4,))
SHAPES = weights(w=(6, 4, 3), v=(6,), grouped=(6, 2, 3), m=(4, 5), mt=(5, 4), row=(5,), deep=(4, 4, 1))
NORM = "n = BatchNormalization(x, scale, bias, mean, var)"


def fold(body, shape="batch,4,9", output="batch,6,9", *, count=1, tolerance=1e-5, **more):
    """Returns the rewritten operators, after comparing count, numbers, signature and the checker."""
    text = f"g (float[{shape}] x) => (float[{output}] y) {{ {NORM} {body} }}"
    graph = onnx_graph(text, weights=STATS | SHAPES | more)
    result, log = rewrite_and_compare(graph, random_feed(graph), tolerance=tolerance)
    assert log.get("fold batch norm ahead", "0") == str(count)
    onnx.checker.check_model(onnx.load_from_string(serialize(result.model)), full_check=True)
    return ops(result)


def test_convolution_without_padding_takes_all():
    assert fold("y = Conv(n, w, v)", output="batch,6,7") == ["Conv"]


def test_convolution_without_a_bias_gets_one():
    assert fold("y = Conv(n, w)", output="batch,6,7") == ["Conv"]


@pytest.mark.parametrize("padding", ["pads=[1,1]", 'auto_pad="SAME_UPPER"', "pads=[2,2], dilations=[2]"])
def test_padded_convolution_keeps_the_shift(padding):
    assert fold(f"y = Conv<{padding}>(n, w, v)") == ["Add", "Conv"]


def test_padded_convolution_without_a_shift_takes_all():
    still = {"bias": np.zeros(4, np.float32), "mean": np.zeros(4, np.float32)}
    assert fold("y = Conv<pads=[1,1]>(n, w, v)", **still) == ["Conv"]


def test_groups_take_the_scale_of_their_channels():
    assert fold("y = Conv<group=2>(n, grouped, v)", output="batch,6,7") == ["Conv"]


@pytest.mark.parametrize(
    ("body", "nodes"),
    [
        ("y = Gemm(n, m, row)", ["Gemm"]),
        ("y = Gemm<transB=1, alpha=0.5, beta=2.0>(n, mt, row)", ["Gemm"]),
        ("y = Gemm<transB=1>(n, mt)", ["Gemm"]),
        ("y = MatMul(n, m)", ["MatMul", "Add"]),
        ("z = MatMul(n, m) y = Relu(z)", ["MatMul", "Add", "Relu"]),
    ],
)
def test_products_take_all(body, nodes):
    assert fold(body, "batch,4", "batch,5") == nodes


def test_every_reader_takes_it():
    nodes = fold(
        "a = Conv<pads=[1,1]>(n, w, v) b = Conv(n, deep) c = ReduceMax(b, two) y = Mul(a, c)", two=np.array([1, 2])
    )
    assert nodes[0] == "Add"
    assert "BatchNormalization" not in nodes


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (
            "a = Conv<pads=[1,1]>(n, w, v) y = Mul(a, n)",
            {"w": weights(w=(4, 4, 3))["w"], "v": weights(v=(4,))["v"]},
        ),
        ("y = Conv<pads=[1,1]>(n, w, v)", {"scale": np.array([1, 1, 1, 1e-8], np.float32)}),
        ("y = Conv<pads=[1,1]>(n, w, v)", {"scale": np.array([1, 1, 1, 0], np.float32)}),
        ("s = Relu(n) y = Conv<pads=[1,1]>(s, w, v)", {}),
    ],
    ids=["read elsewhere", "small scale", "no scale", "behind an activation"],
)
def test_what_does_not_fold_stays(body, more):
    channels = 4 if "Mul" in body else 6
    assert fold(body, output=f"batch,{channels},9", count=0, tolerance=0, **more)[0] == "BatchNormalization"


def test_weights_that_others_read_stay_theirs():
    body = "a = Conv<pads=[1,1]>(n, w, v) b = Conv<pads=[1,1]>(x, w, v) y = Sub(a, b)"
    assert fold(body).count("Conv") == 2
