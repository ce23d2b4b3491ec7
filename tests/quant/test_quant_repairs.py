"""Repairs: float answers stay where they should, the int8 error goes down, nothing but weights changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import sqnr
from repair_models import CLASSES, case, rows_of, two_ranges

from edgemm.errors import QuantizationError
from edgemm.quant.fold import Folder, with_weights
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8, WEIGHT4
from edgemm.quant.repairs import METHODS, repairs
from edgemm.quant.rounding import Grid, gptq, output_error

EXACT = 100.0
"""dB: float answers that differ by rounding only."""


def planned(case, table, precision=INT8, ops=("Conv", "MatMul", "Gemm")):
    """Everything of these operators that may have `precision` has it."""
    types = {(s.name, n.name): n.op_type for s in case.stages.stages for n in s.model.graph}
    listed = alternatives(case.stages, table)
    choices = {n: precision if precision in p and types[n] in ops else FLOAT for n, p in listed.items()}
    return plan_quantization(case.stages, table, choices=choices)


def before_and_after(case, name, precision=INT8):
    table = case.table()
    plan = planned(case, table, precision)
    found = repairs(case.stages, table, plan, case.samples, case.graph.io, [name])
    assert len(found) == 1, "nothing was repaired"
    reference = case.run()
    before = sqnr(reference, case.run(plan=plan, table=table))
    after = sqnr(reference, case.run(found[0].stage_graph, found[0].plan, found[0].table))
    return before, after, found[0]


def outliers(seed=0):
    """A LayerNorm with three channels of 60 to 100 times the others' size, as in transformers, then an MLP."""
    rng = np.random.default_rng(seed)
    gain = np.ones(64)
    gain[[5, 20, 41]] = [100, 80, 60]
    w1 = rng.normal(size=(64, 128)) / 8 / gain[:, None]
    weights = {
        "gain": gain, "shift": rng.normal(size=64) * 0.1 * gain, "w1": w1, "b1": rng.normal(size=128) * 0.1,
        "w2": rng.normal(size=(128, 64)) / 11, "b2": rng.normal(size=64) * 0.1,
    }  # fmt: skip
    text = """g (float[batch,6,64] x) => (float[batch,6,64] y) {
        n = LayerNormalization<axis=-1>(x, gain, shift) p = MatMul(n, w1) h = Add(p, b1) r = Relu(h)
        q = MatMul(r, w2) y = Add(q, b2) }"""
    feed = {"x": rng.normal(size=(48, 6, 64)).astype(np.float32)}
    return case(text, as_float(weights), rows_of({"x": feed["x"][:32]}), {"x": feed["x"][32:]})


def as_float(weights):
    return {n: np.asarray(w, np.float32) for n, w in weights.items()}


def conv_chain(seed=0):
    """Three convolutions with channels of very different sizes in between, as folded batch norms leave them."""
    rng = np.random.default_rng(seed)
    a, b = (10 ** rng.uniform(-1.5, 1, 32) for _ in range(2))
    weights = {
        "w1": rng.normal(size=(32, 16, 3)) / 7 * a[:, None, None], "b1": rng.normal(size=32) * 0.1 * a,
        "w2": rng.normal(size=(32, 32, 3)) / 10 / a[:, None] * b[:, None, None],
        "b2": rng.normal(size=32) * 0.1 * b,
        "w3": rng.normal(size=(32, 32, 3)) / 10 / b[:, None],
    }  # fmt: skip
    text = """g (float[batch,16,40] x) => (float[batch,32,u] y) {
        c = Conv<pads=[1,1]>(x, w1, b1) r = Relu(c) m = MaxPool<kernel_shape=[2], strides=[2]>(r)
        d = Conv<pads=[1,1]>(m, w2, b2) s = Relu(d) y = Conv<pads=[1,1]>(s, w3) }"""
    feed = rng.normal(size=(40, 16, 40)).astype(np.float32)
    return case(text, as_float(weights), rows_of({"x": feed[:24]}), {"x": feed[24:]})


def offsets(seed=0):
    """Inputs far from zero: what rounding does to a weight is a constant in the output."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=(64, 192)) / 8, "b": rng.normal(size=192)}
    text = "g (float[batch,64] x) => (float[batch,192] y) { p = MatMul(x, w) y = Add(p, b) }"
    feed = (10 + 5 * rng.normal(size=64) + 0.3 * rng.normal(size=(64, 64))).astype(np.float32)
    return case(text, as_float(weights), rows_of({"x": feed[:40]}), {"x": feed[40:]})


def correlated(seed=0):
    """Inputs of low rank: errors of one weight can be made up for by another."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=(128, 96)) / 11}
    text = "g (float[batch,128] x) => (float[batch,96] y) { y = MatMul(x, w) }"
    feed = (rng.normal(size=(160, 24)) @ rng.normal(size=(24, 128))).astype(np.float32)
    return case(text, as_float(weights), rows_of({"x": feed[:96]}), {"x": feed[96:]})


def convolution(seed=0):
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=(24, 16, 3, 3)) / 12, "b": rng.normal(size=24)}
    text = """g (float[batch,16,12,12] x) => (float[batch,24,u,v] y) {
        y = Conv<pads=[1,0,1,2], strides=[2,1], dilations=[1,2]>(x, w, b) }"""
    mixed = rng.normal(size=(40, 4, 12, 12))
    feed = np.einsum("bchw,cd->bdhw", mixed, rng.normal(size=(4, 16))).astype(np.float32)
    return case(text, as_float(weights), rows_of({"x": feed[:24]}), {"x": feed[24:]})


def siblings():
    """Query, key and value read one LayerNorm, which another stage makes."""
    rng = np.random.default_rng(3)
    gain = np.where(np.arange(64) == 7, 90.0, 1.0)
    weights = {"gain": gain, "shift": np.zeros(64)}
    weights |= {n: rng.normal(size=(64, 64)) / 8 / gain[:, None] for n in ("wq", "wk", "wv")}
    weights |= {"wz": rng.normal(size=(64, 64)) / 8}
    text = """g (float[batch,5,64] x, float[batch,5,64] z) => (float[batch,5,64] y) {
        n = LayerNormalization(x, gain, shift) q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv)
        t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) o = MatMul(p, v)
        m = MatMul(z, wz) y = Add(o, m) }"""
    feed = {n: rng.normal(size=(32, 5, 64)).astype(np.float32) for n in ("x", "z")}
    return case(text, as_float(weights), rows_of(feed), feed)


REPAIRED = [
    ("smooth", outliers, INT8, 10),
    ("smooth", outliers, DYNAMIC, 10),
    ("smooth", siblings, INT8, 5),
    ("equalize", conv_chain, INT8, 5),
    ("correct-bias", offsets, INT8, 3),
    ("round", correlated, INT8, 0.3),
    ("round", correlated, DYNAMIC, 0.3),
    ("round", correlated, WEIGHT4, 4),
    ("round", convolution, INT8, 0.2),
]


@pytest.mark.parametrize(("name", "build", "precision", "gain"), REPAIRED)
def test_the_output_error_goes_down(name, build, precision, gain):
    small = build()
    before, after, repair = before_and_after(small, name, precision)
    assert after > before + gain
    for node in repair.nodes:
        decision = next(d for d in repair.plan.decisions if (d.stage, d.node) == node)
        assert decision.options["repairs"] == [name]
    if repair.exact:
        assert sqnr(small.run(), small.run(repair.stage_graph)) > EXACT
    assert [[n.name for n in s.model.graph] for s in repair.stage_graph.stages] == [
        [n.name for n in s.model.graph] for s in small.stages.stages
    ]
    whole = with_weights(small.graph.model, repair.weights)
    assert all(
        np.array_equal(whole.graph.initializers[n].const_value.numpy(), w) for n, w in repair.weights.items()
    )


def agreement(reference, other):
    return float((reference.argmax(-1) == other.argmax(-1)).mean())


def test_outlier_channels_break_naive_int8_and_not_the_repaired_plan(tmp_path):
    small = outliers()
    reference = small.run()
    naive = agreement(reference, small.naive(tmp_path))
    table = small.table()
    plan = planned(small, table)
    (repair,) = repairs(small.stages, table, plan, small.samples, small.graph.io, ["smooth"])
    repaired = agreement(reference, small.run(repair.stage_graph, repair.plan, repair.table))
    assert naive < 0.9
    assert repaired >= 0.98
    assert "outliers moved into the weights" in next(
        d.reason for d in repair.plan.decisions if d.precision == INT8
    )


def large_logits(seed=0):
    """Cross-attention whose scores go from −10,000 (masked) to some tens."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    weights = {"wq": q / 2, "wk": q, "wv": rng.normal(size=(64, 64)) / 8}
    text = """g (float[batch,4,64] x, float[batch,24,64] z, float[batch,1,24] mask) => (float[batch,4,64] y) {
        a = MatMul(x, wq) b = MatMul(z, wk) c = MatMul(z, wv) t = Transpose<perm=[0,2,1]>(b)
        d = MatMul(a, t) s = Add(d, mask) p = Softmax(s) y = MatMul(p, c) }"""
    z = rng.normal(size=(64, 24, 64))
    chosen = rng.integers(0, 24, (64, 4))
    x = np.take_along_axis(z, chosen[..., None], axis=1) * 0.5 + 0.5 * rng.normal(size=(64, 4, 64))
    mask = np.where(np.arange(24) < rng.integers(12, 25, (64, 1, 1)), 0, -1e4)
    feed = as_float({"x": x, "z": z, "mask": mask})
    halves = [{n: v[part] for n, v in feed.items()} for part in (slice(0, 32), slice(32, 64))]
    modalities = {"x": "x", "z": "z", "mask": "z"}
    return case(text, as_float(weights), rows_of(halves[0]), halves[1], modalities=modalities)


def test_large_logits_break_naive_int8_and_not_the_plan(tmp_path):
    small = large_logits()
    reference = small.run()
    naive = sqnr(reference, small.naive(tmp_path))
    table = small.table()
    ours = sqnr(reference, small.run(plan=planned(small, table), table=table))
    assert naive < 20
    assert ours > 30


def test_branches_with_gains_need_no_scales_of_their_own():
    small = two_ranges()
    table = small.table()
    plan = planned(small, table)
    assert any(d.options.get("scales") for d in plan.decisions)
    (repair,) = repairs(small.stages, table, plan, small.samples, small.graph.io, ["equalize-joins"])
    assert not any(d.options.get("scales") for d in repair.plan.decisions)
    assert sqnr(small.run(), small.run(repair.stage_graph)) > EXACT

    def right(y):
        found = np.stack([y[:, :CLASSES].argmax(1), y[:, CLASSES : 2 * CLASSES].argmax(1)], 1)
        return float((found == small.labels).all(1).mean())

    y = small.run(repair.stage_graph, repair.plan, repair.table)
    assert right(y) >= right(small.run()) - 0.01
    assert "branches multiplied by" in next(d.reason for d in repair.plan.decisions if "repairs" in d.options)


def test_repairs_chain():
    small = outliers()
    table = small.table()
    plan = planned(small, table)
    stages, done = small.stages, []
    errors = [sqnr(small.run(), small.run(plan=plan, table=table))]
    for name in ("smooth", "round", "correct-bias"):
        for repair in repairs(stages, table, plan, small.samples, small.graph.io, [name]):
            stages, table, plan = repair.stage_graph, repair.table, repair.plan
            done.append(name)
            errors.append(sqnr(small.run(), small.run(stages, plan, table)))
    assert done[0] == "smooth"
    assert len(done) >= 2
    assert errors[-1] > errors[0] + 10
    assert any(d.options.get("repairs", [])[:2] == done[:2] for d in plan.decisions)


def test_nothing_to_do_gives_nothing():
    small = outliers()
    table = small.table()
    everything_float = planned(small, table, ops=())
    assert repairs(small.stages, table, everything_float, small.samples, small.graph.io) == []
    with pytest.raises(QuantizationError, match="no repair 'smoth'"):
        repairs(small.stages, table, everything_float, small.samples, small.graph.io, ["smoth"])
    assert list(METHODS) == ["smooth", "equalize", "equalize-joins", "correct-bias", "round"]


REFUSED = {
    "read by an operator that takes no factor": "n = LayerNormalization(x, g, h) y = MatMul(n, w) o = Tanh(n)",
    "given away by the model": "o = LayerNormalization(x, g, h) y = MatMul(o, w)",
    "made by a Tanh": "n = Tanh(x) y = MatMul(n, w) o = Relu(n)",
    "an input of the model": "y = MatMul(x, w) o = Relu(y)",
    "behind a Gelu": "n = LayerNormalization(x, g, h) e = Gelu(n) y = MatMul(e, w) o = Relu(y)",
    "added to another activation": "n = LayerNormalization(x, g, h) s = Add(n, x) y = MatMul(s, w) o = Relu(y)",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_cannot_take_a_factor_is_left_alone(body):
    rng = np.random.default_rng(0)
    weights = as_float(
        {"g": np.where(np.arange(64) == 3, 50, 1), "h": np.zeros(64), "w": rng.normal(size=(64, 192))}
    )
    used = {n: w for n, w in weights.items() if n == "w" or "LayerNorm" in body}
    width = 192 if "Relu(y)" in body else 64
    text = f"g (float[batch,64] x) => (float[batch,192] y, float[batch,{width}] o) {{ {body} }}"
    feed = {"x": rng.normal(size=(16, 64)).astype(np.float32)}
    small = case(text, used, rows_of(feed), feed)
    folder = Folder(small.stages, small.graph.io)
    stage = small.stages.stages[0]
    product = next(n for n in stage.model.graph if n.op_type == "MatMul")
    assert not folder.move((stage.name, product.inputs[0].name), np.linspace(1, 2, 64), -1)
    assert folder.weights == folder.moved == {}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), four=st.booleans(), rank=st.integers(2, 40))
def test_gptq_stays_on_the_grid_that_apply_finds_again(seed, four, rank):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(5, 48)).astype(np.float32)
    x = rng.normal(size=(64, rank)) @ rng.normal(size=(rank, 48))
    grid = Grid.blocks(rows, {"block_size": 16}) if four else Grid.rows(rows, 8)
    rounded = gptq(rows, x.T @ x, grid)
    again = Grid.blocks(rounded, {"block_size": 16}) if four else Grid.rows(rounded, 8)
    np.testing.assert_allclose(again.round(rounded.astype(np.float64)), rounded, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.scale, grid.scale, rtol=1e-5)


def test_gptq_beats_the_nearest_on_correlated_inputs():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16, 96)).astype(np.float32)
    x = rng.normal(size=(256, 20)) @ rng.normal(size=(20, 96))
    grid = Grid.blocks(rows, {})
    h = x.T @ x
    assert output_error(rows, gptq(rows, h, grid), h) < 0.3 * output_error(rows, grid.round(rows), h)
    np.testing.assert_allclose(gptq(rows, h, grid, block=7), gptq(rows, h, grid), atol=1e-5)


def test_states_and_weights_that_are_read_twice_are_left_alone():
    rng = np.random.default_rng(0)
    weights = as_float(
        {"g": np.where(np.arange(64) == 3, 50, 1), "h": np.zeros(64), "w": rng.normal(size=(64, 64))}
    )
    text = """g (float[batch,64] x) => (float[batch,64] y) {
        n = LayerNormalization(x, g, h) a = MatMul(n, w) b = Tanh(a) y = MatMul(b, w) }"""
    feed = {"x": rng.normal(size=(16, 64)).astype(np.float32)}
    small = case(text, weights, rows_of(feed), feed)
    table = small.table()
    plan = planned(small, table)
    assert repairs(small.stages, table, plan, small.samples, small.graph.io, ["smooth", "round"]) == []


def test_the_given_stages_plan_and_table_are_not_changed():
    small = outliers()
    table = small.table()
    plan = planned(small, table)
    before = small.run()
    kept = {n: v.const_value.numpy().copy() for n, v in small.stages.stages[0].model.graph.initializers.items()}
    found = repairs(small.stages, table, plan, small.samples, small.graph.io)
    assert len(found) >= 3
    assert np.array_equal(small.run(), before)
    assert all(np.array_equal(small.stages.stages[0].model.graph.initializers[n].const_value.numpy(), w)
               for n, w in kept.items())  # fmt: skip
    assert not any("repairs" in d.options for d in plan.decisions)
