"""Convolutions of one input with windows of one shape become one, where that helps on ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from builders import DISABLED, onnx_graph, random_feed, run_whole
from rewriting import ops, weights

from edgemm.graph import serialize
from edgemm.rewrite import rewrite
from edgemm.rewrite.prepare import prepare
from edgemm.rewrite.rules import merge_convolutions

W = weights(
    **dict.fromkeys("wu", (4, 1, 8)),
    **dict.fromkeys("kl", (4, 2, 3, 3)),
    **dict.fromkeys(("one", "one2"), (4, 2, 1, 1)),
    **dict.fromkeys(("g1", "g2"), (4, 1, 3, 3)),
    v=(6, 1, 8),
    b=(6,),
    d=(4, 4, 3, 3),
)
HEADERS = ("", *(f'<ir_version: 7, opset_import: ["": {opset}]>' for opset in (11, 13)))
SOUND = "float[batch,1,80] x"
IMAGE = "float[batch,2,9,9] x"


def merge(body, inputs, outputs, *, count, header=""):
    """Returns the merged operators, after comparing count, numbers, signature and the checker."""
    constants = W | {"two": np.array(2, np.float32)}
    graph, _ = rewrite(onnx_graph(f"{header} g ({inputs}) => ({outputs}) {{ {body} }}", weights=constants))
    model = graph.model.clone()
    assert merge_convolutions.apply(model, graph.io) == count
    merged = replace(graph, model=model)
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)
    assert [v.name for v in model.graph.outputs] == [v.name for v in graph.model.graph.outputs]
    feed = random_feed(graph)
    expected, got = run_whole(graph, feed, DISABLED), run_whole(merged, feed, DISABLED)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-4, err_msg=name)
    if count:
        assert ops(merged).count("Conv") < ops(graph).count("Conv")
        assert [n.op_type for n in prepare(graph.model, "cpu").graph] == ops(merged)
    return ops(merged)


def test_spectrogram_is_one_convolution_of_which_both_parts_are_squared():
    body = """r = Conv<strides=[4]>(x, w) i = Conv<strides=[4]>(x, u) rr = Pow(r, two) ii = Pow(i, two)
        y = Add(rr, ii)"""
    nodes = merge(body, SOUND, "float[batch,4,19] y", count=1)
    assert nodes == ["Conv", "Pow", "Split", "Add"]


@pytest.mark.parametrize("header", HEADERS)
def test_other_channels_and_a_missing_bias(header):
    body = "y = Conv(x, w) z = Conv(x, v, b)"
    nodes = merge(body, SOUND, "float[batch,4,73] y, float[batch,6,73] z", count=1, header=header)
    assert nodes == ["Conv", "Split"]


def test_channels_that_are_put_together_anyway_need_no_split():
    body = "p = Conv(x, k) q = Conv(x, l) r = Relu(p) s = Relu(q) y = Concat<axis=1>(r, s)"
    assert merge(body, IMAGE, "float[batch,8,7,7] y", count=1) == ["Conv", "Relu"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, one) c = Conv(x, one2) y = Sub(a, c)",
        "a = Conv<pads=[1,1,1,1]>(x, k) c = Conv<pads=[2,2,2,2],dilations=[2,2]>(x, l) y = Sub(a, c)",
        "a = Conv(x, k) c = Conv(x, l) d1 = Conv(a, d) d2 = Conv(c, d) y = Sub(d1, d2)",
        "a = Conv<pads=[1,1,1,1],group=2>(x, g1) c = Conv<pads=[1,1,1,1],group=2>(x, g2) y = Sub(a, c)",
    ],
    ids=["windows of one element", "other windows", "blocked layout goes on", "groups"],
)
def test_what_gains_nothing_stays(body):
    merge(body, IMAGE, "float[batch,4,m,n] y", count=0)
