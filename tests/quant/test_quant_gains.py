"""`compare` on a model whose plan moved factors from one weight into another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_quant_repairs import before_and_after, conv_chain, outliers

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.graph import serialize
from edgemm.quant.apply import apply_plan
from edgemm.quant.difference import compare_sides, open_side
from edgemm.quant.gains import Gains


@pytest.mark.parametrize(("build", "name", "moved"), [(outliers, "smooth", "n"), (conv_chain, "equalize", "d")])
def test_moved_factors_are_no_divergence(tmp_path, build, name, moved):
    case = build()
    *_, repair = before_and_after(case, name)
    (stage,) = repair.stage_graph.stages
    engine = serialize(apply_plan(stage, repair.plan, repair.table))
    (tmp_path / "float.onnx").write_bytes(serialize(case.graph.model))
    io = case.graph.io
    entry = EngineEntry(stage.name, (stage.name,), "engines/cpu-int8/x.onnx", ("x",), ("y",), {"int8": 1})
    variant = Variant("cpu-int8", "cpu", "onnxruntime", "int8", "staged", (entry,), {"int8": 1}, len(engine))
    told = StageEntry(stage.name, stage.modalities, stage.role, io.inputs, io.outputs, stage.nodes, 1)
    manifest = Manifest("net", io, (told,), (), (variant,))
    plan = json.dumps(repair.plan.to_json()).encode()
    files = {"engines/cpu-int8/x.onnx": engine}
    write_bundle(tmp_path / "told.edgemm", manifest, files | {"plans/cpu-int8.json": plan})
    write_bundle(tmp_path / "silent.edgemm", manifest, files)
    found = {}
    for name in ("told", "silent"):
        a, b = open_side(tmp_path / "float.onnx"), open_side(tmp_path / f"{name}.edgemm")
        with a.session, b.session:
            found[name] = compare_sides(a, b, case.samples)
    layers = {n: {x.tensor: x for x in f.layers} for n, f in found.items()}
    assert layers["silent"][moved].sqnr_db < 10
    assert found["silent"].first_diverging is not None
    assert layers["told"][moved].rescaled
    assert layers["told"][moved].sqnr_db > 20
    assert found["told"].first_diverging is None
    assert not layers["told"]["y"].rescaled
    (row,) = [x for x in found["told"].to_json()["layers"] if x["tensor"] == moved]
    assert row["rescaled"]


def test_noise_is_no_gain():
    rng = np.random.default_rng(0)
    gains = Gains()
    for _ in range(8):
        a = rng.normal(size=(2, 6, 10))
        gains.add(a, a * np.arange(1, 7)[:, None] + rng.normal(size=a.shape) * np.arange(1, 7)[:, None])
    assert 2 < gains.sqnr_db < 4  # as much noise as signal: half of the power is left over


@pytest.mark.parametrize(("a", "b"), [((4,), (4,)), ((2, 3), (2, 4))])
def test_what_has_no_channels_has_no_gains(a, b):
    gains = Gains()
    gains.add(np.ones(a), np.ones(b))
    assert gains.sqnr_db == -np.inf


def test_a_sign_that_changes_is_no_gain():
    gains = Gains()
    gains.add(np.ones((1, 3, 2)), -np.ones((1, 3, 2)))
    assert gains.sqnr_db == -np.inf
