from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import (
    Attention,
    Branches,
    Cnn,
    Mlp,
    chain_of,
    export,
    exported,
    io_of,
    kernels,
    prepared,
    samples_of,
    session,
    sqnr,
    stage_of,
)
from torch import nn

from edgemm.errors import QuantizationError
from edgemm.graph import serialize
from edgemm.quant import arithmetic
from edgemm.quant.apply import QuantizedStage, apply_plan, quantize_stage
from edgemm.quant.collect import collect
from edgemm.quant.placement import plan_quantization
from edgemm.quant.plan import INT8, QuantPlan
from edgemm.quant.table import TensorRange

MODELS = [Cnn, Attention, Mlp, Branches]


@pytest.fixture(params=MODELS, ids=lambda m: m.__name__)
def quantized(request):
    stage, table, plan = prepared(request.param)
    return request.param, stage, apply_plan(stage, plan, table), plan


def test_result_is_valid_and_keeps_the_signature(quantized):
    _, stage, model, plan = quantized
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)
    for old, new in [
        (stage.model.graph.inputs, model.graph.inputs),
        (stage.model.graph.outputs, model.graph.outputs),
    ]:
        assert [(v.name, v.dtype, v.shape) for v in old] == [(v.name, v.dtype, v.shape) for v in new]
    assert plan.counts()[INT8] >= 2


def test_close_to_float_on_samples_it_has_not_seen(quantized):
    model_class, stage, model, _ = quantized
    x = np.stack([s["x"] for s in samples_of(model_class, 16, seed=9)])
    reference = session(stage.model).run(None, {"x": x})[0]
    got = session(model).run(None, {"x": x})[0]
    assert sqnr(reference, got) > 25
    assert not np.array_equal(reference, got)


def test_batch_stays_dynamic(quantized):
    model_class, _, model, _ = quantized
    run = session(model)
    rows = np.stack([s["x"] for s in samples_of(model_class, 5, seed=3)])
    together = run.run(None, {"x": rows})[0]
    for i in range(5):
        np.testing.assert_allclose(run.run(None, {"x": rows[i : i + 1]})[0][0], together[i], atol=1e-4)


def test_one_pair_per_tensor_and_every_pair_is_read(quantized):
    *_, model, _ = quantized
    nodes = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    assert len({n.inputs[0].name for n in nodes}) == len(nodes)
    for node in model.graph:
        assert all(o.uses() or o.is_graph_output() for o in node.outputs), node.name


def test_equal_arguments_give_equal_bytes(quantized):
    model_class, stage, model, plan = quantized
    table = prepared(model_class)[1]
    assert serialize(apply_plan(stage, plan, table)) == serialize(model)


def test_the_float_stage_is_left_alone():
    stage, table, plan = prepared(Cnn)
    before = serialize(stage.model)
    result = quantize_stage(stage, plan, table)
    assert isinstance(result, QuantizedStage)
    assert result.decisions == plan.stage("whole")
    assert serialize(stage.model) == before


def test_a_cnn_runs_on_integer_kernels(tmp_path):
    stage, table, plan = prepared(Cnn)
    found = kernels(apply_plan(stage, plan, table), tmp_path)
    assert found["QLinearConv"] == 4
    assert found["QLinearAdd"] == 1
    assert found["QGemm"] == 1
    assert found["QuantizeLinear"] == 1  # behind the float stem: from there on no way back and forth
    assert found["DequantizeLinear"] <= 1


def test_residual_add_and_concat_are_planned():
    assert "residual-add" in {d.rule for d in prepared(Cnn)[2].decisions}
    assert "integer-concat" in {d.rule for d in prepared(Branches)[2].decisions}


def test_concat_of_branches_stays_integer(tmp_path):
    stage, table, plan = prepared(Branches)
    found = kernels(apply_plan(stage, plan, table), tmp_path)
    assert found["QLinearConv"] == 3
    assert found["QLinearConcat"] == 1
    assert found["QuantizeLinear"] == 1  # x, read by both branches


def test_attention_keeps_softmax_and_products_float(tmp_path):
    stage, table, plan = prepared(Attention)
    found = kernels(apply_plan(stage, plan, table), tmp_path)
    assert found["MatMulIntegerToFloat"] == 3
    assert found["Softmax"] == 1
    assert found["QLinearSoftmax"] == found["QLinearMatMul"] == 0
    assert {d.rule for d in plan.decisions if d.precision != INT8} == {"no-constant-weight", "too-small"}


def test_gemm_with_relu_before_a_float_layer_is_not_left_dequantized(tmp_path):
    stage, table, plan = prepared(Mlp)
    found = kernels(apply_plan(stage, plan, table), tmp_path)
    assert found["QGemm"] == 2
    assert found["FusedGemm"] == 0


def test_weights_are_stored_once_as_int8():
    stage, table, plan = prepared(Mlp)
    model = apply_plan(stage, plan, table)
    assert len(serialize(model)) < 0.3 * len(serialize(stage.model))
    weights = [v for v in model.graph.initializers.values() if v.const_value.size > 10_000]
    assert [v.dtype for v in weights] == [ir.DataType.INT8] * 2


def test_a_weight_read_twice_is_stored_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(300, 300, bias=False)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    stage = stage_of(export(Shared().eval(), torch.randn(2, 300)))
    data = [{"x": np.random.default_rng(i).normal(size=300).astype(np.float32)} for i in range(8)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    plan = plan_quantization(chain_of(stage), table)
    assert plan.counts() == {INT8: 2}
    model = apply_plan(stage, plan, table)
    assert (
        sum(
            v.dtype == ir.DataType.INT8 and v.const_value.size == 90_000 for v in model.graph.initializers.values()
        )
        == 1
    )


def test_a_graph_output_that_is_read_inside_too_keeps_its_name():
    class Taps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(16, 32, 3), nn.Conv1d(32, 16, 3)

        def forward(self, x):
            features = torch.relu(self.a(x))
            return features, self.b(features)

    torch.manual_seed(0)
    model = Taps().eval()
    stage = stage_of(export_two(model, torch.randn(2, 16, 20)))
    data = [{"x": np.random.default_rng(i).normal(size=(16, 20)).astype(np.float32)} for i in range(8)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    got = apply_plan(stage, plan_quantization(chain_of(stage), table), table)
    onnx.checker.check_model(onnx.load_from_string(serialize(got)), full_check=True)
    assert [o.name for o in got.graph.outputs] == ["features", "out"]
    feed = {"x": np.stack([d["x"] for d in data])}
    for a, b in zip(session(stage.model).run(None, feed), session(got).run(None, feed), strict=True):
        assert sqnr(a, b) > 25


def export_two(model, x):
    program = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["x"],
        output_names=["features", "out"],
        verbose=False,
    )
    return program.model_proto.SerializeToString()


def test_silent_and_nan_inputs_do_no_harm():
    stage, table, plan = prepared(Cnn)
    run, reference = session(apply_plan(stage, plan, table)), session(stage.model)
    blank = np.zeros((2, 3, 16, 16), np.float32)
    assert np.isfinite(run.run(None, {"x": blank})[0]).all()
    assert sqnr(reference.run(None, {"x": blank})[0], run.run(None, {"x": blank})[0]) > 15
    blank[0] = np.nan
    run.run(None, {"x": blank})


def test_a_plan_for_another_model_is_refused():
    stage, table, plan = prepared(Mlp)
    other = replace(plan, decisions=(replace(plan.decisions[0], node="nothing", precision=INT8),))
    with pytest.raises(QuantizationError, match="'nothing' of stage 'whole', which has no such node"):
        apply_plan(stage, other, table)
    with pytest.raises(QuantizationError, match="no calibrated range for tensor"):
        apply_plan(stage, plan, replace(table, ranges={}))


def test_all_float_is_the_float_graph():
    stage, table, plan = prepared(Cnn)
    nothing = plan.with_stages_float(["whole"], "slower-than-float", "1.41 × slower than float")
    assert serialize(apply_plan(stage, nothing, table)) == serialize(stage.model)


def test_a_plan_survives_json():
    stage, table, plan = prepared(Cnn)
    again = QuantPlan.from_json(plan.to_json())
    assert serialize(apply_plan(stage, again, table)) == serialize(apply_plan(stage, plan, table))


def test_seven_bit_weights_for_cpus_that_saturate():
    stage, table, plan = prepared(Mlp)
    narrow = replace(plan, calibration=dict(plan.calibration) | {"weight_bits": 7})
    model = apply_plan(stage, narrow, table)
    largest = max(
        int(np.abs(v.const_value.numpy()).max())
        for v in model.graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value.size > 10_000
    )
    assert largest == 63


floats = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(a=floats, b=floats, points=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_error_inside_the_range_is_at_most_half_a_scale(a, b, points):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    scale = arithmetic.activation_scale(TensorRange(low, high, low, high))
    x = (low + (high - low) * np.array(points)).astype(np.float32)
    error = np.abs(arithmetic.fake_quantize(x, scale).astype(np.float64) - x)
    assert (error <= float(scale.scale) * (0.5 + 1e-4) + 1e-30).all()
    assert arithmetic.fake_quantize(np.zeros(1, np.float32), scale)[0] == 0.0
    assert 0 <= scale.zero_point <= 255


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([7, 8]), zero=st.booleans())
def test_weights_are_within_half_a_scale_per_channel(seed, bits, zero):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(6, 4, 3)) * 10.0 ** rng.integers(-6, 4, (6, 1, 1))).astype(np.float32)
    if zero:
        weight[2] = 0
    scales = arithmetic.weight_scales(weight, 0, bits)
    q = arithmetic.quantize_weight(weight, scales, 0, bits)
    assert np.abs(q).max() <= 2 ** (bits - 1) - 1
    back = q * scales.reshape(-1, 1, 1)
    assert (np.abs(back - weight) <= scales.reshape(-1, 1, 1) * 0.5001).all()


def test_a_dead_channel_with_a_large_bias_keeps_its_bias():
    model = nn.Linear(300, 300)
    with torch.no_grad():
        model.weight[5] *= 1e-9
        model.bias[5] = 1000.0
    stage = stage_of(export(model.eval(), torch.randn(2, 300)))
    data = [{"x": np.random.default_rng(i).normal(size=300).astype(np.float32)} for i in range(8)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    got = session(apply_plan(stage, plan_quantization(chain_of(stage), table), table))
    out = got.run(None, {"x": data[0]["x"][None]})[0]
    assert out[0, 5] == pytest.approx(1000.0, rel=1e-5)


def test_exported_models_are_what_the_tests_say():
    assert len(exported(Cnn)) > 100_000


def test_ranges_of_a_stage_serve_the_graph_in_one_piece(tmp_path):
    """A Gemm with Relu that ends a stage is read inside the graph once stages ship as one."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(256, 320), nn.ReLU())
    head = nn.Sequential(nn.Linear(320, 8))
    stage = stage_of(export(encoder.eval(), torch.randn(2, 256)))
    whole = stage_of(export(nn.Sequential(encoder, head).eval(), torch.randn(2, 256)))
    data = [{"x": np.random.default_rng(i).normal(size=256).astype(np.float32)} for i in range(8)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    plan = plan_quantization(chain_of(stage), table)
    names = dict(
        zip(
            [n.outputs[0].name for n in stage.model.graph],
            [n.outputs[0].name for n in whole.model.graph],
            strict=False,
        )
    )
    names |= {"x": "x"}
    ranges = {f"whole:{names[k.partition(':')[2]]}": v for k, v in table.ranges.items()}
    node = next(n.name for n in whole.model.graph if n.op_type == "Gemm")
    plan = replace(plan, decisions=(replace(plan.decisions[0], node=node),))
    found = kernels(apply_plan(whole, plan, replace(table, ranges=ranges)), tmp_path)
    assert found["QGemm"] == 1
