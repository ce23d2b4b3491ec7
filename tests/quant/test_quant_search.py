from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
import torch
from quant_models import Attention, Cnn, chain_of, export, io_of, prepared, samples_of, stage_of
from torch import nn

from edgemm.metrics import metric
from edgemm.partition import Edge, StageGraph
from edgemm.quant.collect import collect
from edgemm.quant.measure import ChainMeasure, Scoring
from edgemm.quant.placement import plan_quantization
from edgemm.quant.plan import FLOAT, INT8
from edgemm.quant.search import Limits, StageLatency, choose
from edgemm.quant.tensors import WEIGHTED


@dataclass
class Fake:
    """Injected measurements: every int8 node costs some accuracy, every stage has a speed."""

    cost: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    asked: int = 0

    def int8(self, plan):
        return [d for d in plan.decisions if d.precision == INT8 and d.op in WEIGHTED]

    def drop(self, plan):
        self.asked += 1
        return sum(self.cost.get(d.node, self.cost.get(d.stage, 0.0)) for d in self.int8(plan))

    def output_error(self, plan):
        return sum(self.cost.get(d.node, self.cost.get(d.stage, 0.0)) for d in self.int8(plan))

    def latency(self, plan, stages):
        return {s: StageLatency(1.0, self._ratio(plan, s)) for s in stages}

    def _ratio(self, plan, stage):
        kinds = {d.op for d in plan.stage(stage) if d.precision == INT8 and d.op in WEIGHTED}
        return max((self.ratio.get(f"{stage}/{k}", self.ratio.get(stage, 0.5)) for k in kinds), default=1.0)


@pytest.fixture(scope="module")
def two():
    """Two independent stages, "cnn" and "att"."""
    stages, ranges, table = [], {}, None
    for name, model in (("cnn", Cnn), ("att", Attention)):
        stage, table, _ = prepared(model)
        stages.append(
            type(stage)(name, (name,), "encoder", stage.inputs, stage.outputs, stage.model, stage.nodes, 0)
        )
        ranges |= {k.replace("whole:", f"{name}:"): v for k, v in table.ranges.items()}
    table = type(table)(ranges, "minmax", 24, "", "")
    graph = StageGraph(tuple(stages), (), ())
    return graph, table, plan_quantization(graph, table)


def count(plan, stage):
    return sum(d.precision == INT8 for d in plan.stage(stage))


def test_a_plan_that_pays_is_left_alone(two):
    result = choose(*two, Fake(), Limits())
    assert result.plan.decisions == two[2].decisions
    assert (result.drop, result.max_output_error, result.evaluations, result.steps) == (0, 0, 1, ())
    assert result.latency["cnn"].ratio == 0.5


def test_a_slower_stage_goes_back_to_float_with_its_reason(two):
    result = choose(*two, Fake(ratio={"att": 1.41}), Limits())
    assert count(result.plan, "att") == 0
    assert count(result.plan, "cnn") == count(two[2], "cnn")
    turned = [d for d in result.plan.stage("att") if d.rule == "slower-than-float"]
    assert {d.reason for d in turned} == {"1.41 × the time of float"}
    assert result.steps == ("att: float, 1.41 × the time of float",)


def test_one_kind_of_operator_may_stay(two):
    fake = Fake(ratio={"cnn/Conv": 0.6, "cnn/Gemm": 1.8})
    result = choose(*two, fake, Limits())
    kinds = {d.op for d in result.plan.stage("cnn") if d.precision == INT8}
    assert "Conv" in kinds
    assert "Gemm" not in kinds
    assert result.latency["cnn"].ratio == 0.6


def test_the_most_damaging_stage_is_turned_first(two):
    result = choose(*two, Fake(cost={"att": 0.02, "cnn": 0.001}), Limits(drop=0.01))
    assert count(result.plan, "att") == 0
    assert count(result.plan, "cnn") == count(two[2], "cnn")
    assert result.drop <= 0.01
    assert {d.rule for d in result.plan.stage("att") if d.node in _int8(two[2], "att")} == {"accuracy-budget"}


def _int8(plan, stage):
    return {d.node for d in plan.stage(stage) if d.precision == INT8}


def test_a_part_of_a_stage_may_be_enough(two):
    first = next(d.node for d in two[2].stage("att") if d.precision == INT8)
    result = choose(*two, Fake(cost={first: 0.5}), Limits(drop=0.01))
    assert _int8(two[2], "att") - _int8(result.plan, "att") == {first}
    assert result.steps[0].startswith("att: its first layer float")


def test_over_budget_everywhere_ends_in_float(two):
    result = choose(*two, Fake(cost={"att": 1.0, "cnn": 1.0}), Limits(drop=0.01))
    assert result.plan.counts().get(INT8, 0) == 0
    assert (result.drop, result.max_output_error) == (0, 0)


def test_nan_is_never_within_the_budget(two):
    result = choose(*two, Fake(cost={"att": float("nan"), "cnn": 0.0}), Limits(drop=0.01))
    assert count(result.plan, "att") == 0
    assert count(result.plan, "cnn") > 0


def test_the_number_of_evaluations_is_bounded(two):
    fake = Fake(cost={"att": 1.0, "cnn": 1.0})
    result = choose(*two, fake, Limits(drop=0.01, evaluations=2))
    assert fake.asked == result.evaluations <= 2 + 2 + 1  # a round that has begun is finished
    assert result.plan.counts().get(INT8, 0) == 0


def test_an_output_error_counts_where_the_metric_sees_nothing(two):
    class Blind(Fake):
        def drop(self, plan):
            self.asked += 1
            return 0.0

    fake = Blind(cost={"att": 0.4})
    assert count(choose(*two, fake, Limits()).plan, "att") > 0
    result = choose(*two, fake, Limits(output_error=0.1))
    assert count(result.plan, "att") == 0
    assert result.max_output_error <= 0.1


def test_equal_measurements_give_equal_plans(two):
    fakes = [Fake(cost={"att": 0.004, "cnn": 0.003}) for _ in range(2)]
    results = [choose(*two, f, Limits(drop=0.01)) for f in fakes]
    assert results[0].plan == results[1].plan
    assert results[0].steps == results[1].steps


@pytest.fixture(scope="module")
def real():
    stage, table, plan = prepared(Cnn)
    data = [dict(s, label=np.int64(i % 10)) for i, s in enumerate(samples_of(Cnn, 20, seed=5))]
    measure = ChainMeasure(chain_of(stage), io_of(stage), table, data, Scoring(metric("agreement")), seconds=0.05)
    return stage, table, plan, measure


def test_measuring_on_real_sessions(real):
    stage, _, plan, measure = real
    assert -0.01 <= measure.drop(plan) <= 0.3
    assert 0 < measure.output_error(plan) < 0.2
    floats = plan.with_stages_float(["whole"], "r", "r")
    assert measure.drop(floats) == 0
    assert measure.output_error(floats) == 0
    found = measure.latency(plan, ["whole"])["whole"]
    assert found.float_ms > 0
    assert found.int8_ms > 0
    assert stage.name in measure.latency(floats, ["whole"])


def test_choose_on_real_sessions_keeps_its_promise(real):
    stage, table, plan, measure = real
    result = choose(chain_of(stage), table, plan, measure, Limits(drop=0.0, output_error=0.05))
    assert measure.drop(result.plan) <= 0.0
    assert measure.output_error(result.plan) <= 0.05
    assert result.max_output_error == measure.output_error(result.plan)


@pytest.mark.slow  # torch takes its time to export a GRU
def test_a_gru_behind_convolutions_is_not_damaged():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(32, 64, 3, padding=1)
            self.gru = nn.GRU(64, 32, batch_first=True)
            self.out = nn.Linear(32, 4)

        def forward(self, x):
            steps, _ = self.gru(torch.relu(self.conv(x)).transpose(1, 2))
            return self.out(steps[:, -1])

    torch.manual_seed(0)
    stage = stage_of(export(Recurrent().eval(), torch.randn(2, 32, 60)))
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(32, 60)).astype(np.float32)} for _ in range(40)]
    graph, io = chain_of(stage), io_of(stage)
    table = collect(graph, io, data[:20], "percentile")
    plan = plan_quantization(graph, table)
    assert {d.op: d.precision for d in plan.decisions}["GRU"] == FLOAT
    measure = ChainMeasure(graph, io, table, data[20:], Scoring(metric("cosine")), seconds=0.05)
    assert measure.output_error(plan) < 0.05
    assert abs(measure.drop(plan)) < 0.01


def test_stages_that_feed_each_other_are_chained_in_the_measurement():
    stage, _, _ = prepared(Cnn)
    head = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[n,10] out) => (float[n,10] y) { y = Softmax(out) }'
    )
    second = type(stage)("head", ("x",), "fusion head", stage.outputs, (), head, 1, 0)
    graph = StageGraph((stage, second), (Edge("whole", "head", "out"),), ())
    io = io_of(stage)
    io = type(io)(io.inputs, (type(io.outputs[0])("y", "float32", ("batch", 10)),), io.modalities)
    table = collect(graph, io, samples_of(Cnn, 8), "minmax")
    measure = ChainMeasure(
        graph, io, table, samples_of(Cnn, 8, seed=4), Scoring(metric("agreement")), seconds=0.02
    )
    assert measure.output_error(plan_quantization(graph, table)) < 0.2
    assert set(measure.latency(plan_quantization(graph, table), ["whole"])) == {"whole"}
