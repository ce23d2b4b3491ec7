"""Precisions other than static int8: what is listed, chosen, applied, and run by ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxruntime.quantization as peer
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
from edgemm.graph import ExportedGraph, serialize
from edgemm.quant import arithmetic
from edgemm.quant.apply import apply_plan
from edgemm.quant.collect import collect
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8, WEIGHT4, WEIGHT8, Decision, QuantPlan
from edgemm.rewrite import rewrite

EXPECTED_DB = {DYNAMIC: 30, WEIGHT8: 35, WEIGHT4: 14}


def wanted(stage, table, precision):
    """Every node that may have `precision`, with it; everything else float."""
    listed = alternatives(chain_of(stage), table)
    return {node: precision if precision in found else FLOAT for node, found in listed.items()}


def applied(stage, table, precision):
    plan = plan_quantization(chain_of(stage), table, choices=wanted(stage, table, precision))
    return plan, apply_plan(stage, plan, table)


@pytest.mark.parametrize("precision", [DYNAMIC, WEIGHT8, WEIGHT4])
@pytest.mark.parametrize("model_class", [Cnn, Attention, Mlp, Branches], ids=lambda m: m.__name__)
def test_every_kind_is_close_to_float_and_valid(model_class, precision):
    stage, table, _ = prepared(model_class)
    plan, model = applied(stage, table, precision)
    if precision not in plan.counts():
        assert model_class is Branches
        return
    proto = onnx.load_from_string(serialize(model))
    if precision == DYNAMIC:
        onnx.checker.check_model(proto, full_check=True)
    assert [o.name for o in model.graph.outputs] == [o.name for o in stage.model.graph.outputs]
    x = np.stack([s["x"] for s in samples_of(model_class, 8, seed=9)])
    reference = session(stage.model).run(None, {"x": x})[0]
    got = session(model).run(None, {"x": x})[0]
    assert sqnr(reference, got) > EXPECTED_DB[precision]
    assert not np.array_equal(reference, got)


def test_dynamic_products_run_fused_and_share_the_quantized_input(tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(64, 96, bias=False), nn.Linear(64, 96, bias=False)

        def forward(self, x):
            return self.q(x) @ self.k(x).transpose(1, 2)

    torch.manual_seed(0)
    stage = stage_of(export(Heads().eval(), torch.randn(2, 12, 64)))
    table = collect(chain_of(stage), io_of(stage), samples_of(Attention, 4), "minmax")
    plan, model = applied(stage, table, DYNAMIC)
    assert plan.counts() == {DYNAMIC: 2, FLOAT: 1}
    found = kernels(model, tmp_path)
    assert found["DynamicQuantizeLinear"] == 1
    assert found["MatMulIntegerToFloat"] == 2
    stage, table, _ = prepared(Mlp)
    found = kernels(applied(stage, table, DYNAMIC)[1], tmp_path)
    assert found["DynamicQuantizeMatMul"] == 3


def test_large_products_are_stored_in_blocks(tmp_path):
    stage, table, _ = prepared(Mlp)
    model = applied(stage, table, WEIGHT8)[1]
    assert kernels(model, tmp_path)["MatMulNBits"] == 2
    assert len(serialize(model)) < 0.35 * len(serialize(stage.model))
    small = applied(stage, table, WEIGHT4)[1]
    assert len(serialize(small)) < 0.25 * len(serialize(stage.model))


def test_stored_weights_are_float_again_when_the_engine_runs(tmp_path):
    """A quarter of the bytes, and the very kernels of the float graph."""
    stage, table, _ = prepared(Cnn)
    plan = plan_quantization(chain_of(stage), table, choices=wanted(stage, table, WEIGHT8))
    stored = replace(plan, decisions=tuple(replace(d, options={"form": "stored"}) for d in plan.decisions))
    model = apply_plan(stage, stored, table)
    assert len(serialize(model)) < 0.35 * len(serialize(stage.model))
    assert kernels(model, tmp_path) == kernels(stage.model, tmp_path)


class Text(nn.Module):
    """Token ids, an embedding, a recurrent layer, a classifier."""

    def __init__(self, layer, both=False):
        super().__init__()
        self.table = nn.Embedding(300, 48)
        self.layer = layer(48, 64, batch_first=True, bidirectional=both)
        self.out = nn.Linear(128 if both else 64, 8)

    def forward(self, x):
        return self.out(self.layer(self.table(x.abs().long() % 300))[0][:, -1])


@lru_cache
def text_stage(kind, both):
    torch.manual_seed(0)
    stage = stage_of(export(Text(getattr(nn, kind), both).eval(), torch.randn(2, 10)))
    simple, _ = rewrite(ExportedGraph(stage.model, io_of(stage)))  # folds the weights into initializers
    stage = replace(stage, model=simple.model)
    data = [{"x": (np.random.default_rng(i).normal(size=10) * 500).astype(np.float32)} for i in range(6)]
    return stage, collect(chain_of(stage), io_of(stage), data, "minmax"), np.stack([d["x"] for d in data])


@pytest.mark.parametrize("both", [False, True], ids=["forward", "bidirectional"])
def test_an_lstm_may_be_dynamic(both, tmp_path):
    stage, table, x = text_stage("LSTM", both)
    listed = alternatives(chain_of(stage), table)
    (lstm,) = [n for n in stage.model.graph if n.op_type == "LSTM"]
    assert listed["whole", lstm.name] == (FLOAT, DYNAMIC, WEIGHT8)
    model = applied(stage, table, DYNAMIC)[1]
    assert kernels(model, tmp_path)["DynamicQuantizeLSTM"] == 1
    reference, got = (session(m).run(None, {"x": x})[0] for m in (stage.model, model))
    assert sqnr(reference, got) > 25


def test_a_gru_has_no_integer_kernel_and_is_stored_at_most():
    stage, table, x = text_stage("GRU", False)
    (gru,) = [n for n in stage.model.graph if n.op_type == "GRU"]
    assert alternatives(chain_of(stage), table)["whole", gru.name] == (FLOAT, WEIGHT8)
    model = applied(stage, table, WEIGHT8)[1]
    assert len(serialize(model)) < 0.35 * len(serialize(stage.model))
    reference, got = (session(m).run(None, {"x": x})[0] for m in (stage.model, model))
    assert sqnr(reference, got) > 30


@pytest.mark.parametrize(("precision", "least", "size"), [(WEIGHT8, 35, 0.3), (WEIGHT4, 15, 0.2)])
def test_an_embedding_table_may_be_stored_in_fewer_bits(precision, least, size):
    stage, table, x = text_stage("GRU", False)
    (gather,) = [
        n for n in stage.model.graph if n.op_type == "Gather" and n.inputs[0].const_value is not None
        and n.inputs[0].const_value.size == 300 * 48
    ]  # fmt: skip
    plan = plan_quantization(chain_of(stage), table, choices={("whole", gather.name): precision})
    model = apply_plan(stage, plan, table)
    bytes_of = [sum(v.const_value.nbytes for v in m.graph.initializers.values()) for m in (stage.model, model)]
    assert bytes_of[0] - bytes_of[1] > (1 - size) * 300 * 48 * 4
    reference, got = (session(m).run(None, {"x": x})[0] for m in (stage.model, model))
    assert sqnr(reference, got) > least
    assert not np.array_equal(reference, got)


@pytest.mark.parametrize("precision", [DYNAMIC, WEIGHT8, WEIGHT4])
def test_openvino_reads_the_same_graphs(precision):
    import openvino

    stage, table, _ = prepared(Mlp)
    model = applied(stage, table, precision)[1]
    x = np.stack([s["x"] for s in samples_of(Mlp, 8, seed=9)])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(serialize(model)), "CPU")
    got = next(iter(compiled({"x": x}).values()))
    assert sqnr(session(stage.model).run(None, {"x": x})[0], got) > EXPECTED_DB[precision]


@pytest.mark.parametrize("block", [16, 64, 128])
def test_a_depth_that_is_no_multiple_of_the_block(block):
    stage = stage_of(export(nn.Linear(200, 330).eval(), torch.randn(2, 200)))
    data = [{"x": np.random.default_rng(i).normal(size=200).astype(np.float32)} for i in range(4)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    plan = plan_quantization(chain_of(stage), table, choices=wanted(stage, table, WEIGHT4))
    (decision,) = plan.decisions
    plan = replace(plan, decisions=(replace(decision, options={"block_size": block}),))
    x = np.stack([d["x"] for d in data])
    got = session(apply_plan(stage, plan, table)).run(None, {"x": x})[0]
    assert sqnr(session(stage.model).run(None, {"x": x})[0], got) > 15


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), bits=st.sampled_from([4, 8]), block=st.sampled_from([16, 32]),
    depth=st.integers(1, 100),
)  # fmt: skip
def test_block_weights_are_within_a_scale(seed, bits, block, depth):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(3, depth)) * 10.0 ** rng.integers(-3, 3, (3, 1)) + rng.normal()).astype(np.float32)
    q, scales, zeros = arithmetic.quantize_blocks(rows, bits, block)
    if bits == 4:
        q, zeros = (np.stack([a & 15, a >> 4], -1).reshape(*a.shape[:-1], -1) for a in (q, zeros))
    back = (q.astype(np.float32) - zeros[:, : scales.shape[1], None]) * scales[..., None]
    error = np.abs(back.reshape(3, -1)[:, :depth] - rows).reshape(3, -1)
    limit = np.repeat(scales, block, axis=1)[:, :depth]
    assert (error <= limit * 1.0001).all()
    assert (back.reshape(3, -1)[:, depth:] == 0).all()


# -- choices and edited plans ---------------------------------------------------------------------------------


def test_the_first_alternative_is_what_the_plan_guesses():
    for model_class in (Cnn, Attention, Mlp, Branches):
        stage, table, plan = prepared(model_class)
        listed = alternatives(chain_of(stage), table)
        found = {(d.stage, d.node): d.precision for d in plan.decisions}
        assert {node: found.get(node, INT8) for node in listed} == {n: p[0] for n, p in listed.items()}
        assert all(FLOAT in p and len(p) > 1 for p in listed.values())
        assert set(found) - set(listed) == {
            (d.stage, d.node) for d in plan.decisions if d.rule in ("no-constant-weight",)
        }


def test_size_rules_are_only_guesses():
    stage, table, plan = prepared(Cnn)
    small = [d for d in plan.decisions if d.rule in ("too-small", "too-few-channels")]
    assert {d.op for d in small} == {"Conv", "Gemm"}
    everything = {("whole", d.node): INT8 for d in plan.decisions}
    changed = plan_quantization(chain_of(stage), table, choices=everything)
    assert {d.precision for d in changed.decisions} == {INT8}
    assert "instead of fp32: " in next(d.reason for d in changed.decisions if d.node == small[0].node)
    x = np.stack([s["x"] for s in samples_of(Cnn, 8, seed=9)])
    got = session(apply_plan(stage, changed, table)).run(None, {"x": x})[0]
    assert sqnr(session(stage.model).run(None, {"x": x})[0], got) > 20


def test_depthwise_convolution_may_be_int8(tmp_path):
    torch.manual_seed(0)
    stage = stage_of(export(nn.Conv2d(32, 32, 3, groups=32).eval(), torch.randn(2, 32, 8, 8)))
    data = [{"x": np.random.default_rng(i).normal(size=(32, 8, 8)).astype(np.float32)} for i in range(4)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    ((node, listed),) = alternatives(chain_of(stage), table).items()
    assert listed == (FLOAT, INT8)
    plan = plan_quantization(chain_of(stage), table, choices={node: INT8})
    assert kernels(apply_plan(stage, plan, table), tmp_path)["QLinearConv"] == 1


def test_kinds_mix_in_one_graph(tmp_path):
    stage, table, _ = prepared(Attention)
    listed = alternatives(chain_of(stage), table)
    kinds = [INT8, DYNAMIC, WEIGHT8, WEIGHT4]
    choices = {node: kinds[i % 4] for i, node in enumerate(listed)}
    mixed = plan_quantization(chain_of(stage), table, choices=choices)
    assert set(mixed.counts()) == {*kinds, FLOAT}
    x = np.stack([s["x"] for s in samples_of(Attention, 8, seed=9)])
    got = session(apply_plan(stage, mixed, table)).run(None, {"x": x})[0]
    assert sqnr(session(stage.model).run(None, {"x": x})[0], got) > 20
    again = QuantPlan.from_json(json.loads(json.dumps(mixed.to_json())))
    assert again == mixed
    assert serialize(apply_plan(stage, again, table)) == serialize(apply_plan(stage, mixed, table))


def test_without_a_range_static_int8_is_not_listed():
    stage, table, _ = prepared(Mlp)
    listed = alternatives(chain_of(stage), replace(table, ranges={}))
    assert listed
    assert all(INT8 not in found and DYNAMIC in found for found in listed.values())


def test_a_choice_that_is_not_possible_is_refused():
    stage, table, _ = prepared(Cnn)
    conv = next(n for n in stage.model.graph if n.op_type == "Conv")
    with pytest.raises(QuantizationError, match=r"'int8-dynamic', expected .*fp32") as caught:
        plan_quantization(chain_of(stage), table, choices={("whole", conv.name): DYNAMIC})
    assert f"node '{conv.name}' of stage 'whole'" in str(caught.value)
    with pytest.raises(QuantizationError, match="no node 'nothing' that can be anything but float"):
        plan_quantization(chain_of(stage), table, choices={("whole", "nothing"): INT8})


def test_an_edited_plan_is_checked():
    stage, table, plan = prepared(Cnn)
    conv = next(d for d in plan.decisions if d.op == "Conv" and d.precision == INT8)

    def edited(**changes):
        decisions = tuple(replace(d, **changes) if d is conv else d for d in plan.decisions)
        return apply_plan(stage, replace(plan, decisions=decisions), table)

    with pytest.raises(QuantizationError, match=r"got precision 'int4-weight', expected int8 or fp32"):
        edited(precision=WEIGHT4)
    with pytest.raises(QuantizationError, match=r"got form 'blocks' for int8-weight, expected stored"):
        edited(precision=WEIGHT8, options={"form": "blocks"})
    with pytest.raises(
        QuantizationError, match=r"int8-weight for 'gone' of stage 'whole', which has no such node"
    ):
        edited(precision=WEIGHT8, node="gone")
    edited(precision=WEIGHT8)
    edited(precision=FLOAT)


def test_plan_files_are_checked():
    data = prepared(Cnn)[2].to_json()
    assert set(data["decisions"][0]) == {"node", "op", "stage", "precision", "rule", "reason"}
    old = data["decisions"][0]
    full = Decision.from_json(old | {"options": {"block_size": 64}, "cost": 0.0, "gain": 1.5})
    assert Decision.from_json(full.to_json()) == full
    for broken, match in [
        (old | {"precision": "int9"}, "got precision 'int9', expected one of fp32, int8, "),
        (old | {"precison": "int8"}, "got field 'precison'"),
        ({k: v for k, v in old.items() if k != "stage"}, "no text for stage"),
    ]:
        with pytest.raises(QuantizationError, match=match):
            Decision.from_json(broken)
    with pytest.raises(QuantizationError, match="'decisions', expected a list"):
        QuantPlan.from_json(data | {"decisions": None})


def test_weights_read_twice_are_stored_once_in_each_kind():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(300, 300)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    stage = stage_of(export(Shared().eval(), torch.randn(2, 300)))
    data = [{"x": np.random.default_rng(i).normal(size=300).astype(np.float32)} for i in range(4)]
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    for precision in (DYNAMIC, WEIGHT8, WEIGHT4):
        model = applied(stage, table, precision)[1]
        large = [v for v in model.graph.initializers.values() if v.const_value.size > 40_000]
        assert [v.dtype for v in large] == [ir.DataType.INT8 if precision == DYNAMIC else ir.DataType.UINT8]


class Integrator(nn.Module):
    """An LSTM whose gates saturate: it adds up small inputs over 200 steps and forgets nothing."""

    def __init__(self, size=32):
        super().__init__()
        self.layer = nn.LSTM(size, size, batch_first=True)
        self.out = nn.Linear(size, 8)
        with torch.no_grad():
            self.layer.bias_ih_l0[:size] = 12.0  # input gate open
            self.layer.bias_ih_l0[size : 2 * size] = 12.0  # nothing is forgotten
            self.layer.bias_hh_l0[: 2 * size] = 0.0
            self.layer.weight_hh_l0[2 * size : 3 * size] *= 0.05
            self.layer.bias_ih_l0[2 * size : 3 * size] = 0.0
            self.layer.bias_hh_l0[2 * size : 3 * size] = 0.0

    def forward(self, x):
        return self.out(self.layer(x)[0][:, -1])


def test_a_saturating_state_breaks_naive_dynamic_int8_and_not_the_plan(tmp_path):
    torch.manual_seed(0)
    stage = stage_of(export(Integrator().eval(), torch.randn(2, 200, 32)))
    simple, _ = rewrite(ExportedGraph(stage.model, io_of(stage)))
    stage = replace(stage, model=simple.model)
    rng = np.random.default_rng(0)
    data = [{"x": (0.02 * rng.normal(size=(200, 32))).astype(np.float32)} for _ in range(16)]
    for sample in data:
        sample["x"][rng.integers(0, 100)] *= 200  # one loud step makes the scale coarse for the quiet ones
    table = collect(chain_of(stage), io_of(stage), data, "minmax")
    x = np.stack([d["x"] for d in data])
    reference = session(stage.model).run(None, {"x": x})[0]
    proto = onnx.load_from_string(serialize(stage.model))
    proto.graph.ClearField("value_info")  # the peer transposes weights and keeps the shapes that it finds here
    onnx.save(proto, tmp_path / "float.onnx")
    peer.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", per_channel=True)
    naive = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    assert sqnr(reference, naive.run(None, {"x": x})[0]) < 15
    plan = plan_quantization(chain_of(stage), table)
    assert next(d for d in plan.decisions if d.op == "LSTM").rule == "recurrent"
    assert sqnr(reference, session(apply_plan(stage, plan, table)).run(None, {"x": x})[0]) > 40
