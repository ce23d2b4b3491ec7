"""Scales at joins: shared where that leaves enough bits, otherwise one per branch or float."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from quant_models import kernels, sqnr
from repair_models import CLASSES, case, rows_of, two_ranges

from edgemm.errors import QuantizationError
from edgemm.graph import serialize
from edgemm.quant.apply import apply_plan
from edgemm.quant.joins import MIN_BITS, join_scales, join_warnings
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8, QuantPlan


def accuracy(case, y):
    """Share of samples with both classes right."""
    found = np.stack([y[:, :CLASSES].argmax(1), y[:, CLASSES : 2 * CLASSES].argmax(1)], 1)
    return float((found == case.labels).all(1).mean())


def only(case, op, precision=INT8):
    """Choices: one operator kind of the fusion stage has `precision`, everything else is float."""
    listed = alternatives(case.stages, case.table())
    ops = {n.name: n.op_type for n in case.stages.stages[-1].model.graph}
    return {
        node: precision if node[0] == case.stages.stages[-1].name and ops[node[1]] == op else FLOAT
        for node in listed
    }


def shared(plan):
    """The plan with every scale shared again."""
    return replace(plan, decisions=tuple(replace(d, options={}) for d in plan.decisions))


@pytest.mark.parametrize("head", ["MatMul", "Gemm"])
def test_one_modality_with_100_times_the_range_of_the_other(head, tmp_path):
    small = two_ranges(head=head)
    exact = accuracy(small, small.run())
    naive = accuracy(small, small.naive(tmp_path))
    table = small.table()
    plan = plan_quantization(small.stages, table, choices=only(small, head))
    ours = accuracy(small, small.run(plan=plan, table=table))
    assert exact > 0.97
    assert naive < exact - 0.2
    assert ours >= exact - 0.01
    assert accuracy(small, small.run(plan=shared(plan), table=table)) < exact - 0.2
    (decision,) = [d for d in plan.decisions if d.precision == INT8]
    assert decision.options == {"scales": "separate"}
    (join,) = [d for d in plan.decisions if d.op == "Concat"]
    assert (join.precision, join.rule) == (FLOAT, "separate-scales")
    assert "x 8.0, z 1." in join.reason
    assert QuantPlan.from_json(plan.to_json()) == plan


def test_the_whole_plan_of_the_same_model_stays_in_the_budget():
    small = two_ranges()
    table = small.table()
    every = {n: INT8 for n, listed in alternatives(small.stages, table).items() if INT8 in listed}
    plan = plan_quantization(small.stages, table, choices=every)
    assert plan.counts() == {FLOAT: 1, INT8: 3}
    assert accuracy(small, small.run(plan=plan, table=table)) >= accuracy(small, small.run()) - 0.01


def test_separate_scales_run_on_integer_kernels(tmp_path):
    small = two_ranges()
    table = small.table()
    plan = plan_quantization(small.stages, table, choices=only(small, "MatMul"))
    model = apply_plan(small.stages.stages[-1], plan, table)
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)
    found = kernels(model, tmp_path)
    assert found["MatMulIntegerToFloat"] == 2
    assert found["QuantizeLinear"] == 2
    assert found["Concat"] == 0


def test_a_warning_has_the_numbers():
    small = two_ranges()
    (text,) = join_warnings(small.stages, small.table())
    assert "z ('rb') would keep 1." in text
    assert "of 8 bits in a scale shared with x" in text
    assert text.endswith("it gets a scale of its own.")
    assert join_warnings(*(lambda c: (c.stages, c.table()))(two_ranges(ratio=1.5))) == []


def test_similar_branches_share_a_scale():
    similar = two_ranges(ratio=1.5)
    table = similar.table()
    (join,) = join_scales(similar.stages, table)
    assert join.bits > MIN_BITS
    plan = plan_quantization(similar.stages, table, choices=only(similar, "MatMul"))
    assert [d.options for d in plan.decisions if d.precision == INT8] == [{}]
    assert next(d for d in plan.decisions if d.op == "Concat").rule == "shared-scale"


def test_bits_are_those_of_the_definition():
    (join,) = join_scales(two_ranges().stages, two_ranges().table())
    widths = [b.width for b in join.branches]
    assert [b.source for b in join.branches] == ["x", "z"]
    for branch in join.branches:
        assert branch.bits == pytest.approx(np.log2(256 * branch.width / max(widths)))


def conv_after_concat():
    """The reader is a convolution, which is not split."""
    rng = np.random.default_rng(0)
    weights = {"w": (rng.normal(size=(32, 32, 3)) / 9).astype(np.float32)}
    text = """g (float[batch,16,30] x, float[batch,16,30] z) => (float[batch,32,28] y) {
        a = Relu(x) b = Relu(z) j = Concat<axis=1>(a, b) y = Conv(j, w) }"""
    feed = {"x": 100 * rng.normal(size=(24, 16, 30)), "z": rng.normal(size=(24, 16, 30))}
    feed = {n: v.astype(np.float32) for n, v in feed.items()}
    return case(text, weights, rows_of(feed), feed)


def test_a_reader_that_cannot_be_split_stays_float():
    conv = conv_after_concat()
    table = conv.table()
    plan = plan_quantization(conv.stages, table)
    found = {d.op: d for d in plan.decisions}
    assert (found["Conv"].precision, found["Conv"].rule) == (FLOAT, "join-bits")
    assert found["Concat"].rule == "join-float"
    ((node, listed),) = alternatives(conv.stages, table).items()
    assert listed == (FLOAT, INT8)
    chosen = plan_quantization(conv.stages, table, choices={node: INT8})
    assert next(d for d in chosen.decisions if d.op == "Conv").precision == INT8
    assert "stays float" in join_warnings(conv.stages, table)[0]


def test_an_add_of_branches_is_looked_at_and_a_residual_is_not():
    rng = np.random.default_rng(0)
    weights = {n: (rng.normal(size=(64, 192)) / 8).astype(np.float32) for n in ("w", "v")}
    text = """g (float[batch,64] x, float[batch,64] z) => (float[batch,192] y, float[batch,192] r) {
        a = Relu(x) b = Relu(z) s = Add(a, b) y = MatMul(s, w) c = Tanh(s) d = Add(c, s) r = MatMul(d, v) }"""
    feed = {"x": 100 * rng.normal(size=(24, 64)), "z": rng.normal(size=(24, 64))}
    feed = {n: v.astype(np.float32) for n, v in feed.items()}
    add = case(text, weights, rows_of(feed), feed)
    (join,) = join_scales(add.stages, add.table())
    assert join.op == "Add"
    assert join.separable == ()
    plan = plan_quantization(add.stages, add.table())
    assert sorted((d.rule, d.precision) for d in plan.decisions if d.op == "MatMul") == [
        ("join-bits", FLOAT),
        ("matmul-per-channel", INT8),
    ]


def test_an_attention_join_is_explained():
    rng = np.random.default_rng(0)
    weights = {n: (rng.normal(size=(64, 192)) / 8).astype(np.float32) for n in ("q", "k", "v")}
    text = """g (float[batch,5,64] x, float[batch,7,64] z) => (float[batch,5,192] y) {
        a = MatMul(x, q) b = MatMul(z, k) c = MatMul(z, v) t = Transpose<perm=[0,2,1]>(b)
        s = MatMul(a, t) p = Softmax(s) y = MatMul(p, c) }"""
    feed = {"x": rng.normal(size=(16, 5, 64)), "z": rng.normal(size=(16, 7, 64))}
    feed = {n: v.astype(np.float32) for n, v in feed.items()}
    attention = case(text, weights, rows_of(feed), feed)
    table = attention.table()
    plan = plan_quantization(attention.stages, table)
    joins = [d for d in plan.decisions if d.rule == "attention-join"]
    assert len(joins) == 2
    assert "product of activations of x and z" in joins[0].reason
    assert plan.counts() == {FLOAT: 2, INT8: 3}
    assert sqnr(attention.run(), attention.run(plan=plan, table=table)) > 25


def test_an_option_that_does_not_fit_is_refused():
    small = two_ranges()
    table = small.table()
    plan = plan_quantization(small.stages, table, choices=only(small, "MatMul"))

    def edited(**options):
        decisions = tuple(replace(d, options=options) if d.precision == INT8 else d for d in plan.decisions)
        return apply_plan(small.stages.stages[-1], replace(plan, decisions=decisions), table)

    edited(scales="shared")
    with pytest.raises(QuantizationError, match=r"got \"scales\": 'both', expected 'shared' or 'separate'"):
        edited(scales="both")
    conv = conv_after_concat()
    plan = plan_quantization(conv.stages, conv.table())
    node = next(d for d in plan.decisions if d.op == "Conv")
    forced = replace(plan, decisions=(replace(node, precision=INT8, options={"scales": "separate"}),))
    with pytest.raises(QuantizationError, match="got separate scales, expected a product"):
        apply_plan(conv.stages.stages[-1], forced, conv.table())


def test_dynamic_reader_of_a_join_is_chosen_explicitly_only():
    small = two_ranges()
    table = small.table()
    plan = plan_quantization(small.stages, table, choices=only(small, "MatMul", DYNAMIC))
    assert [d.options for d in plan.decisions if d.precision == DYNAMIC] == [{}]
