"""The whole way on real data: handwritten digits, a trained network, files, disjoint parts, a plan that pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_models import chain_of, export, io_of, session, stage_of
from sklearn.datasets import load_digits
from torch import nn

from edgemm.data import check_samples, open_samples, split
from edgemm.metrics import evaluate, metric
from edgemm.quant.apply import apply_plan
from edgemm.quant.calibrators import CALIBRATORS
from edgemm.quant.collect import collect
from edgemm.quant.groups import choices_of, group_nodes
from edgemm.quant.measure import ChainMeasure, Scoring
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import INT8
from edgemm.quant.search import Limits, search


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Float stage and a held-out npz."""
    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order], labels[order]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers: threads only wait for each other
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(768, 96)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(96, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    a, b = torch.from_numpy(x[:800]), torch.from_numpy(labels[:800])
    for _ in range(5):
        for batch in torch.randperm(800).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(a[batch]), b[batch]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    path = tmp_path_factory.mktemp("digits") / "held_out.npz"
    np.savez(path, x=x[1000:], label=labels[1000:])
    return stage_of(export(model.eval(), torch.from_numpy(x[:2]))), path


def runner(model):
    opened = session(model)
    return lambda feed: {"out": opened.run(None, dict(feed))[0]}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_int8_keeps_the_accuracy_on_samples_that_nothing_has_seen(digits, calibrator):
    stage, path = digits
    io, graph = io_of(stage), chain_of(stage)
    samples = open_samples(str(path))
    report = check_samples(samples, io, label="label")
    assert report.labels == ("label",)
    parts = split(samples, {"calibration": 0.2, "search": 0.3, "evaluation": 0.5}, seed=0)
    table = collect(graph, io, parts["calibration"], calibrator)
    assert table.data_digest == parts["calibration"].digest
    plan = plan_quantization(graph, table)
    assert plan.counts()[INT8] == 3
    accuracy = metric("accuracy")
    before = evaluate(runner(stage.model), io, parts["evaluation"], accuracy, label="label")
    after = evaluate(runner(apply_plan(stage, plan, table)), io, parts["evaluation"], accuracy, label="label")
    assert before > 0.93
    assert accuracy.drop(before, after) <= 0.01


def test_the_search_keeps_what_the_budget_allows(digits):
    stage, path = digits
    io, graph = io_of(stage), chain_of(stage)
    parts = split(open_samples(str(path)), {"calibration": 0.3, "search": 0.3, "evaluation": 0.4}, seed=1)
    table = collect(graph, io, parts["calibration"], "mse")
    groups = group_nodes(graph, alternatives(graph, table))

    def plan_of(setting, why):
        return plan_quantization(graph, table, choices=choices_of(groups, setting))

    measure = ChainMeasure(graph, io, table, parts["search"], Scoring(metric("accuracy"), "label"))
    start = {g.name: INT8 for g in groups if INT8 in g.options}
    result = search(groups, start, plan_of, measure, Limits(drop=0.01, timed=False))
    assert result.best is not None
    assert result.best.plan.counts()[INT8] >= 3
    assert measure.accuracy(result.best.plan).worst <= 0.01
    assert all(0 < cost < 0.2 for cost in result.cost.values())
