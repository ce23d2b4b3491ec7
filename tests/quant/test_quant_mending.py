"""Repairs in the search: those that pay are kept, and a saved plan brings them back."""

from __future__ import annotations

import json

import numpy as np
from repair_models import case, rows_of

from edgemm.metrics import metric
from edgemm.pipeline.mending import mend, on_mended, redo
from edgemm.quant.measure import ChainMeasure, Scoring
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import FLOAT, INT8, QuantPlan


def uneven(seed=0):
    """Two convolutions with channels of very different sizes in between, as folded batch norms leave them."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-1.5, 1, 32)
    weights = {
        "w1": rng.normal(size=(32, 16, 3)) / 7 * size[:, None, None],
        "b1": rng.normal(size=32) * 0.1 * size,
        "w2": rng.normal(size=(32, 32, 3)) / 10 / size[:, None],
    }
    text = """g (float[batch,16,40] x) => (float[batch,32,u] y) {
        c = Conv<pads=[1,1]>(x, w1, b1) r = Relu(c) y = Conv<pads=[1,1]>(r, w2) }"""
    feed = rng.normal(size=(40, 16, 40)).astype(np.float32)
    arrays = {n: np.asarray(w, np.float32) for n, w in weights.items()}
    return case(text, arrays, rows_of({"x": feed[:24]}), {"x": feed[24:]})


def measured():
    model = uneven()
    table = model.table()
    listed = alternatives(model.stages, table)
    plan = plan_quantization(
        model.stages, table, choices={n: INT8 if INT8 in p else FLOAT for n, p in listed.items()}
    )
    measure = ChainMeasure(model.stages, model.graph.io, table, model.samples, Scoring(metric("cosine")))
    return model, plan, measure


def test_repairs_that_pay_are_kept():
    model, plan, measure = measured()
    found = mend(plan, measure, model.samples, model.graph.io, lambda: False)
    assert found is not None
    assert found.steps[0].startswith("equalize: output error ")
    before, after = measure.output_error(plan), on_mended(measure, found).output_error(found.plan)
    assert after < 0.5 * before
    assert measure.output_error(plan) == before  # the measure of the plan as it was is not disturbed


def test_no_time_is_no_repair():
    model, plan, measure = measured()
    assert mend(plan, measure, model.samples, model.graph.io, lambda: True) is None


def test_a_saved_plan_brings_its_repairs_back():
    model, plan, measure = measured()
    found = mend(plan, measure, model.samples, model.graph.io, lambda: False)
    saved = QuantPlan.from_json(json.loads(json.dumps(found.plan.to_json())))
    again = redo(saved, model.stages, measure.table, model.samples, model.graph.io)
    assert again.weights.keys() == found.weights.keys()
    for name, array in found.weights.items():
        np.testing.assert_allclose(again.weights[name], array, rtol=1e-5, atol=1e-7)
