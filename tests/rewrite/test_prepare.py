"""Preparation for a target: attention in ONNX Runtime's own operators, plain ONNX elsewhere, the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from builders import DISABLED, concat_model, onnx_graph, random_feed, run_whole, torch_graph
from rewriting import weights
from torch import nn

from edgemm.errors import BackendError
from edgemm.graph import digest
from edgemm.partition import partition
from edgemm.quant.apply import apply_plan
from edgemm.quant.collect import collect
from edgemm.quant.placement import plan_quantization
from edgemm.rewrite import rewrite
from edgemm.rewrite.prepare import RULES, prepare


def prepared(graph, *feeds, target="cpu", tolerance=1e-5):
    """Returns the operators of the prepared graph, after comparing its outputs with those of `graph`."""
    small, _ = rewrite(graph)
    before = digest(small.model)
    model = prepare(small.model, target)
    assert digest(small.model) == before
    assert [v.name for v in model.graph.inputs] == [v.name for v in small.model.graph.inputs]
    for feed in feeds:
        expected, got = run_whole(graph, feed, DISABLED), run_whole(replace(small, model=model), feed)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
    return [n.op_type for n in model.graph]


def heads(name, source, length="6"):
    """Returns a projection of `source` and its heads [batch, 2, length, 4], in ONNX text."""
    return f"""{name}p = MatMul({source}, w{name}) {name}l = Add({name}p, b{name})
        {name}r = Reshape({name}l, cut{length}) {name}h = Transpose<perm=[0,2,1,3]>({name}r)"""


CORE = """kt = Transpose<perm=[0,1,3,2]>(kh) qs = Mul(qh, half) s = MatMul(qs, kt) {mask}
    p = Softmax<axis=-1>(m) o = MatMul(p, vh) ot = Transpose<perm=[0,2,1,3]>(o) y = Reshape(ot, join)"""

SIZES = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "bq": (8,), "bk": (8,), "bv": (8,)}
CONSTANTS = {
    "cut6": np.array([-1, 6, 2, 4]),
    "cut5": np.array([-1, 5, 2, 4]),
    "join": np.array([-1, 6, 8]),
    "half": np.array(0.5, np.float32),
    "low": np.array(-1e4, np.float32),
    "zero": np.array(0, np.float32),
}


def attention(mask="m = Identity(s)", inputs="float[batch,6,8] x", body=None, **more):
    """Returns an attention of two heads over `x`."""
    body = body or " ".join(heads(n, "x") for n in "qkv") + CORE.format(mask=mask)
    constants = {k: v / 4 for k, v in weights(**SIZES).items()} | CONSTANTS | more
    return onnx_graph(f"g ({inputs}) => (float y) {{ {body} }}", weights=constants)


def test_self_attention_takes_its_projections_in():
    graph = attention()

    found = prepared(graph, random_feed(graph, batch=1), random_feed(graph, batch=3))

    assert found == ["Attention"]


@pytest.mark.parametrize(
    ("mask", "extra"),
    [
        ("m = Add(s, full)", {"full": np.triu(np.full((1, 1, 6, 6), -1e4, np.float32), 1)}),
        ("w = Where(keep, zero, low) m = Add(s, w)", {}),  # one row for all queries
        ("w = Where(keep, zero, low) m = Add(w, s)", {}),
    ],
)
def test_masks_become_a_bias(mask, extra):
    graph = attention(mask, "float[batch,6,8] x, bool[batch,1,1,6] keep", **extra)
    feed = random_feed(graph, batch=3)
    feed["keep"][:, ..., 0] = True

    found = prepared(graph, feed)

    assert "Softmax" not in found
    assert "Attention" in found


def test_cross_attention_keeps_its_projections():
    body = heads("q", "x") + heads("k", "z", "5") + heads("v", "z", "5") + CORE.format(mask="m = Identity(s)")
    graph = attention(inputs="float[batch,6,8] x, float[batch,5,8] z", body=body)

    found = prepared(graph, random_feed(graph, batch=1), random_feed(graph, batch=3))

    assert sorted(found) == ["Add"] * 3 + ["MatMul"] * 3 + ["MultiHeadAttention"]


@pytest.mark.parametrize(
    "core",
    [
        CORE.format(mask="m = Identity(s)") + " spy = ReduceSum(p) yy = Add(y, spy)",  # probabilities are read
        CORE.replace("axis=-1", "axis=2").format(mask="m = Identity(s)"),  # over the queries
        CORE.format(mask="m = Mul(s, s)"),  # no attention
    ],
)
def test_what_is_no_attention_stays(core):
    output = "yy" if "yy" in core else "y"
    body = " ".join(heads(n, "x") for n in "qkv") + core + f" out = Relu({output})"
    constants = {k: v / 4 for k, v in weights(**SIZES).items()} | CONSTANTS
    graph = onnx_graph(f"g (float[batch,6,8] x) => (float out) {{ {body} }}", weights=constants)

    found = prepared(graph, random_feed(graph, batch=2))

    assert "Softmax" in found


def test_openvino_gets_no_operator_of_onnxruntime():
    graph = attention()
    small, _ = rewrite(graph)

    model = prepare(small.model, "openvino")

    assert {n.domain for n in model.graph} == {""}
    assert digest(model) == digest(small.model)


def test_an_unknown_target_is_named_with_those_there_are():
    with pytest.raises(BackendError, match=r"'cpus'.*cpu, cpu-batched, openvino") as caught:
        prepare(concat_model().model, "cpus")
    assert caught.value.hint == "did you mean 'cpu'?"
    assert set(RULES) == {"cpu", "cpu-batched", "openvino", "openvino-batched"}


class CrossAttention(nn.Module):
    """`torch.nn.MultiheadAttention` as it is: packed weights, sequence first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, image, audio):
        attended, _ = self.attend(image, audio, audio, need_weights=False)
        return self.norm(image + attended)


@pytest.fixture(scope="module")
def cross():
    torch.manual_seed(0)
    example = {"image": torch.randn(2, 6, 8), "audio": torch.randn(2, 5, 8)}
    return torch_graph(CrossAttention(), example)


def test_torch_attention_is_one_node_and_nothing_is_rearranged(cross):
    found = prepared(cross, random_feed(cross, batch=1), random_feed(cross, batch=4))

    assert "MultiHeadAttention" in found
    assert "Transpose" not in found
    assert "Reshape" not in found
    assert len(found) < len(rewrite(cross)[0].model.graph) < len(cross.model.graph)


def test_the_rules_leave_the_stages_as_they_were(cross):
    before, after = partition(cross), partition(rewrite(cross)[0])

    assert [(s.name, s.modalities, s.role) for s in after.stages] == [
        (s.name, s.modalities, s.role) for s in before.stages
    ]


def test_a_quantized_stage_keeps_its_int8_projections():
    wide = {k: v / 16 for k, v in weights(**{n: (64,) * len(s) for n, s in SIZES.items()}).items()}
    shapes = {"cut6": np.array([-1, 6, 2, 32]), "join": np.array([-1, 6, 64])}
    graph = rewrite(attention(inputs="float[batch,6,64] x", **wide, **shapes))[0]
    stages = partition(graph)
    samples = [{n: a[0] for n, a in random_feed(graph, batch=1, seed=i).items()} for i in range(8)]
    table = collect(stages, graph.io, samples, "minmax")
    stage = stages.stages[0]
    projections = [
        n.name for n in stage.model.graph if n.op_type == "MatMul" and n.inputs[1].const_value is not None
    ]
    plan = plan_quantization(stages, table, choices={(stage.name, n): "int8" for n in projections})
    quantized = apply_plan(stage, plan, table)

    model = prepare(quantized, "cpu")

    counts = _count(model)
    assert counts["QuantizeLinear"] == _count(quantized)["QuantizeLinear"] > 0
    assert counts.get("Attention", 0) == 0


def _count(model: ir.Model) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in model.graph:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


@pytest.mark.parametrize(
    ("limit", "reader", "moved"),
    [
        ("Max(f, low)", "Conv(m, v)", True),
        ("Min(f, high)", "MaxPool<kernel_shape=[2,2]>(m)", True),
        ("Clip(f, , top)", "Conv(m, v)", True),
        ("Clip(f, bottom, top)", "Conv(m, v)", True),
        ("Max(f, low)", "Relu(m)", False),  # not in blocks anyway
        ("Max(f, each)", "Conv(m, v)", False),  # a limit per channel
        ("Max(c, low)", "Conv(m, v)", False),  # behind the Conv itself
    ],
)
def test_limits_between_convolutions_join_one(limit, reader, moved):
    numbers = {"low": [[[[-0.2]]]], "high": [0.3], "top": 0.4, "bottom": -0.3, "each": np.zeros((16, 1, 1))}
    graph = onnx_graph(
        f"""g (float[batch,3,8,8] x) => (float y) {{
            c = Conv(x, w) f = LeakyRelu<alpha=0.2>(c) m = {limit} d = {reader} y = Neg(d)
        }}""",
        weights={k: np.array(v, np.float32) for k, v in numbers.items()}
        | weights(w=(16, 3, 3, 3), v=(8, 16, 1, 1)),
    )

    found = prepared(graph, random_feed(graph, batch=1), random_feed(graph, batch=3))

    assert (found[:4] == ["Conv", "LeakyRelu", "Conv", "Clip"]) == moved
