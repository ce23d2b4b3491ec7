from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import Attention, Cnn, chain_of, export, io_of, prepared, samples_of, stage_of
from torch import nn

from edgemm.data import blank_twins
from edgemm.metrics import metric
from edgemm.partition import Edge, StageGraph
from edgemm.quant.cache import Results
from edgemm.quant.coarse import coarse_points
from edgemm.quant.collect import collect
from edgemm.quant.groups import choices_of, group_nodes
from edgemm.quant.measure import ChainMeasure, Scoring
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8
from edgemm.quant.search import Accuracy, Limits, search


@dataclass
class Machine:
    """Injected measurements: each group that is int8 costs some accuracy and saves some time."""

    groups: tuple
    cost: dict = field(default_factory=dict)
    saves: dict = field(default_factory=dict)
    mild: float = 1.0  # what dynamic int8 costs, relative to static
    asked: int = 0

    def _integer(self, plan):
        at = {(d.stage, d.node): d.precision for d in plan.decisions}
        return [(g, p) for g in self.groups if (p := at[g.stage, g.nodes[0]]) != FLOAT]

    def _cost(self, plan):
        return sum(self.cost.get(g.name, 0.0) * (self.mild if p == DYNAMIC else 1) for g, p in self._integer(plan))

    def accuracy(self, plan):
        self.asked += 1
        return Accuracy(self._cost(plan), {"a": 0.5 * self._cost(plan)})

    def output_error(self, plan):
        return self._cost(plan)

    def _ms(self, plan, stage):
        return 10.0 - sum(self.saves.get(g.name, 1.0) for g, _ in self._integer(plan) if g.stage == stage)

    def milliseconds(self, plan, other, stage):
        return self._ms(plan, stage), self._ms(other, stage)


@pytest.fixture(scope="module")
def two():
    """Two independent stages, "cnn" and "att", with their groups and what makes plans of them."""
    stages, ranges, table = [], {}, None
    for name, model in (("cnn", Cnn), ("att", Attention)):
        stage, table, _ = prepared(model)
        stages.append(
            type(stage)(name, (name,), "encoder", stage.inputs, stage.outputs, stage.model, stage.nodes, 0)
        )
        ranges |= {k.replace("whole:", f"{name}:"): v for k, v in table.ranges.items()}
    table = type(table)(ranges, "minmax", 24, "", "")
    graph = StageGraph(tuple(stages), (), ())
    groups = group_nodes(graph, alternatives(graph, table))

    def plan_of(setting, why):
        keep = {
            (g.stage, n): why[g.name] for g in groups if g.name in why and g.name not in setting for n in g.nodes
        }
        return plan_quantization(graph, table, keep_float=keep, choices=choices_of(groups, setting))

    return groups, {g.name: INT8 for g in groups if INT8 in g.options}, plan_of


UNHURRIED = Limits(seconds=1e9)


def look(two, machine, limits=UNHURRIED, ms=20.0):
    groups, start, plan_of = two
    return search(groups, start, plan_of, machine, limits, ms)


def test_groups_are_few_alike_and_cover_every_choice(two):
    groups, _, plan_of = two
    assert len({g.name for g in groups}) == len(groups)
    everything = [(g.stage, n) for g in groups for n in g.nodes]
    assert len(set(everything)) == len(everything)
    plan = plan_of({}, {})
    assert all(d.precision == FLOAT for d in plan.decisions if (d.stage, d.node) in everything)


@settings(max_examples=30, deadline=None)
@given(most=st.integers(1, 12))
def test_merging_groups_never_mixes_stages_or_operators(two_graph, most):
    graph, found = two_graph
    groups = group_nodes(graph, found, most)
    single = group_nodes(graph, found, 10_000)
    assert sorted(n for g in groups for n in g.nodes) == sorted(n for g in single for n in g.nodes)
    by_node = {(g.stage, g.nodes[0]): g for g in single}
    for group in groups:
        members = [by_node[group.stage, n] for n in group.nodes]
        assert {(m.op, m.options, m.guess) for m in members} == {(group.op, group.options, group.guess)}
        assert group.weights == sum(m.weights for m in members)
    kinds = len({(g.stage, g.op, g.options, g.guess) for g in single})
    assert len(groups) <= max(most, kinds) or all(
        (a.stage, a.op, a.options, a.guess) != (b.stage, b.op, b.options, b.guess) for a, b in pairwise(groups)
    )


@pytest.fixture(scope="module")
def two_graph():
    stage, table, _ = prepared(Cnn)
    graph = StageGraph((stage,), (), ())
    return graph, alternatives(graph, table)


def test_a_plan_that_pays_is_left_alone(two):
    result = look(two, Machine(two[0]))
    assert result.best.setting == two[1]
    assert result.best.ms == 20.0
    assert set(result.cost) == set(result.gain) == set(two[1])
    assert result.finished


def test_milder_plans_are_scored_to_step_back_to(two):
    """Behind the first that fits come two with a third and two thirds of the groups in float, slower each."""
    points = look(two, Machine(two[0])).points
    counts = [len(p.setting) for p in points]
    assert len(points) == 3
    assert counts[0] == len(two[1]) > counts[1] > counts[2] > 0
    assert points[0].ms < points[1].ms < points[2].ms
    costly = dict.fromkeys(list(two[1])[:2], 0.5)
    milder = [p for p in look(two, Machine(two[0], cost=costly)).points if p.fits]
    assert len(milder) >= 3
    assert not set(costly) & set(milder[0].setting)


def test_a_drop_of_the_whole_budget_is_within_it(two):
    """4 of 400 samples are 0.010000000000000009 of them in floating point; the budget is 0.01."""
    name = next(iter(two[1]))
    machine = Machine(two[0], cost={name: 1 - 396 / 400})
    assert 1 - 396 / 400 > 0.01
    assert look(two, machine, Limits(drop=0.01, seconds=1e9)).best.setting == two[1]


def test_groups_that_save_no_time_go_back_with_their_reason(two):
    slow = [g.name for g in two[0] if g.stage == "att" and g.name in two[1]]
    result = look(two, Machine(two[0], saves=dict.fromkeys(slow, -1.0)))
    assert set(result.best.setting) == set(two[1]) - set(slow)
    assert result.best.ms == pytest.approx(20.0 - len(slow))
    turned = [d for d in result.best.plan.stage("att") if d.rule == "no-gain"]
    assert turned
    assert {d.reason for d in turned} == {"not faster on this machine"}


def test_a_costly_group_goes_back_and_the_rest_stays(two):
    costly = next(g.name for g in two[0] if g.guess == INT8)
    result = look(two, Machine(two[0], cost={costly: 0.5}))
    assert result.best.setting == {k: v for k, v in two[1].items() if k != costly}
    assert result.best.accuracy.worst <= 0.01
    nodes = next(g.nodes for g in two[0] if g.name == costly)
    decision = next(d for d in result.best.plan.decisions if d.node == nodes[0])
    assert decision.rule == "accuracy-budget"
    assert "0.5" in decision.reason


def test_the_cheapest_accuracy_is_bought_first(two):
    """Of two groups that cost the same, the one that saves less time goes back."""
    first, second = list(two[1])[:2]
    machine = Machine(two[0], cost={first: 0.008, second: 0.008}, saves={first: 0.5, second: 3.0})
    best = look(two, machine).best
    assert first not in best.setting
    assert second in best.setting


def test_a_group_that_went_early_comes_back_where_it_fits(two):
    """Bisection turns a prefix of the path; what need not be float in it is integer again."""
    names = list(two[1])
    cost = {names[0]: 0.002, names[1]: 0.5}
    saves = {names[0]: 0.2, names[1]: 3.0}
    best = look(two, Machine(two[0], cost=cost, saves=saves)).best
    assert names[0] in best.setting
    assert names[1] not in best.setting


def test_dynamic_scales_are_tried_before_float(two):
    able = next(g.name for g in two[0] if DYNAMIC in g.options and g.name in two[1])
    result = look(two, Machine(two[0], cost={able: 0.5}, mild=0.001))
    assert result.best.setting[able] == DYNAMIC
    assert any(able in step and DYNAMIC in step for step in result.steps)


def test_over_budget_everywhere_leaves_no_point(two):
    result = look(two, Machine(two[0], cost=dict.fromkeys(two[1], 1.0)))
    assert result.best is None
    assert all(not p.fits for p in result.points)


def test_nan_is_never_within_the_budget(two):
    result = look(two, Machine(two[0], cost=dict.fromkeys(two[1], math.nan)))
    assert result.best is None


def test_a_blank_modality_counts_like_the_complete_samples():
    assert Accuracy(0.0, {"a": 0.02}).worst == 0.02
    assert Accuracy(0.0, {"a": math.nan}).worst == math.inf


def test_an_output_error_counts_where_the_metric_sees_nothing(two):
    class Blind(Machine):
        def accuracy(self, plan):
            return Accuracy(0.0)

    costly = next(iter(two[1]))
    machine = Blind(two[0], cost={costly: 0.4})
    assert costly in look(two, machine).best.setting
    assert costly not in look(two, machine, Limits(output_error=0.1)).best.setting


def test_untimed_asks_for_no_latency_and_is_the_same_every_time(two):
    class Timeless(Machine):
        def milliseconds(self, plan, other, stage):
            raise AssertionError("nothing is timed")

    machine = Timeless(two[0], cost={n: 0.004 for n in two[1]})
    results = [look(two, machine, Limits(timed=False), math.nan) for _ in range(2)]
    assert results[0].points == results[1].points or all(
        a.plan == b.plan for a, b in zip(results[0].points, results[1].points, strict=True)
    )
    assert results[0].best is not None


def test_a_time_limit_ends_the_search_with_what_there_is(two):
    machine = Machine(two[0], cost=dict.fromkeys(two[1], 0.0001))
    result = look(two, machine, Limits(seconds=0.0))
    assert not result.finished
    assert any("--search-seconds" in step for step in result.steps)
    assert len(result.points) == 1  # the start is scored even then
    assert machine.asked == 1


@pytest.fixture(scope="module")
def real():
    stage, table, plan = prepared(Cnn)
    data = [dict(s, label=np.int64(i % 10)) for i, s in enumerate(samples_of(Cnn, 20, seed=5))]
    return stage, table, plan, data


def measure_of(real, results=None, blanks=None):
    stage, table, _, data = real
    scoring = Scoring(metric("agreement"))
    return ChainMeasure(chain_of(stage), io_of(stage), table, data, scoring, blanks or {}, results or Results())


def test_measuring_on_real_sessions(real):
    plan, measure = real[2], measure_of(real)
    assert -0.01 <= measure.accuracy(plan).worst <= 0.3
    assert 0 < measure.output_error(plan) < 0.2
    floats = plan.with_stages_float(["whole"], "r", "r")
    assert measure.accuracy(floats) == Accuracy(0.0, {})
    assert measure.output_error(floats) == 0


def test_results_are_kept_and_found_again(real, tmp_path, monkeypatch):
    file = tmp_path / "search.jsonl"
    first = measure_of(real, Results.open(file))
    numbers = first.accuracy(real[2]), first.output_error(real[2])
    with file.open("a") as out:
        out.write('["cut off')  # an interruption
    again = measure_of(real, Results.open(file))
    monkeypatch.setattr(ChainMeasure, "_outputs", lambda *a: pytest.fail("measured again"))
    assert (again.accuracy(real[2]), again.output_error(real[2])) == numbers
    assert again.results.reused == 2


def test_another_plan_table_or_sample_is_another_result(real, tmp_path):
    stage, table, plan, data = real
    results = Results.open(tmp_path / "search.jsonl")
    measure_of(real, results).output_error(plan)
    reused = results.reused
    other = type(table)(table.ranges, "minmax", table.samples + 1, table.graph_digest, table.data_digest)
    measure_of((stage, other, plan, data), results).output_error(plan)
    kept = next(d for d in plan.decisions if d.precision == INT8)
    smaller = plan_quantization(chain_of(stage), table, choices={("whole", kept.node): FLOAT})
    measure_of(real, results).output_error(smaller)
    assert results.reused == reused


def test_blank_twins_are_scored_apart(real):
    stage, _, plan, data = real
    io = io_of(stage)
    twins = blank_twins(data, io)
    found = measure_of(real, blanks=twins).accuracy(plan)
    assert set(found.blank) == set(twins)


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
    measure = ChainMeasure(graph, io, table, data[20:], Scoring(metric("cosine")))
    assert measure.output_error(plan) < 0.05
    assert abs(measure.accuracy(plan).drop) < 0.01


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
    measure = ChainMeasure(graph, io, table, samples_of(Cnn, 8, seed=4), Scoring(metric("agreement")))
    assert 0 < measure.output_error(plan_quantization(graph, table)) < 0.2


class Slow(Machine):
    """A machine with a clock: every measurement takes a second."""

    now: float = 0.0

    def accuracy(self, plan):
        self.now += 1
        return super().accuracy(plan)

    def output_error(self, plan):
        self.now += 1
        return super().output_error(plan)


@pytest.fixture
def slow(two, monkeypatch):
    """A model whose stage "cnn" costs too much, and the time that measurements take."""
    groups, start, plan_of = two
    machine = Slow(groups, cost={g.name: 0.03 if g.stage == "cnn" else 0.001 for g in groups})
    monkeypatch.setattr("time.monotonic", lambda: machine.now)
    return machine, start, plan_of


def coarse(slow, seconds, **modelled):
    machine, start, plan_of = slow
    saves = {g.name: modelled[g.stage] for g in machine.groups} if modelled else {}
    limits = Limits(0.01, seconds=seconds, timed=False, modelled=saves)
    return coarse_points(machine.groups, start, plan_of, machine, limits, machine.now)


def stages_of(points):
    return [sorted({name.split("/")[0] for name in p.setting}) for p in points]


def test_the_stage_that_costs_most_goes_back_first(slow):
    points = coarse(slow, 60)
    assert stages_of(points[:1]) == [["att"]]
    assert [p.fits for p in points] == [True, True]  # the second is a half of what is left
    assert 0 < len(points[1].setting) < len(points[0].setting)
    assert coarse(slow, 60) == points
    assert slow[0].asked == 4  # of accuracy


@pytest.mark.parametrize(("saves", "left"), [({"cnn": 1.0, "att": 2.0}, "att"), ({"cnn": 2.0, "att": 1.0}, "cnn")])
def test_without_time_one_milder_plan_is_scored(slow, saves, left):
    points = coarse(slow, 0, **saves)
    assert stages_of(points) == [[left]]  # what saves the least goes back
    assert points[0].fits == (left == "att")


def test_the_time_for_it_is_half(slow):
    slow[0].cost = dict.fromkeys(slow[0].cost, 1.0)
    assert len(coarse(slow, 60)) == 3  # one stage, and the halves of the other
    assert len(coarse(slow, 8)) == 2


def test_one_stage_goes_back_by_halves(slow):
    machine, start, plan_of = slow
    machine.cost = {name: 0.02 for name in list(start)[:1]}
    only = {n: p for n, p in start.items() if n.startswith("cnn/")}
    limits = Limits(0.01, seconds=0, timed=False)
    groups = [g for g in machine.groups if g.name in only]
    (point,) = coarse_points(groups, only, plan_of, machine, limits, machine.now)
    assert list(point.setting) == list(only)[: len(only) // 2]
    points = coarse_points(groups, only, plan_of, machine, replace(limits, seconds=60), machine.now)
    assert [p.fits for p in points] == [False, True]
