"""Encoders that share weights in one batch: a form that is raced against the plain one, and ships when it wins."""

from __future__ import annotations

import numpy as np
import pytest
from builders import onnx_graph, random_feed

from edgemm.partition import partition
from edgemm.pipeline.candidates import build, float_models, staged, whole
from edgemm.pipeline.engines import engine_kinds
from edgemm.pipeline.lineup import NONE, anything, race_floats
from edgemm.pipeline.race import Track
from edgemm.rewrite import rewrite
from edgemm.runtime.registry import session_class
from edgemm.runtime.session import SessionOptions


@pytest.fixture
def graph():
    body = " ".join(f"{n}1 = MatMul({n}, w) {n}2 = Relu({n}1) {n}3 = MatMul({n}2, v)" for n in ("left", "right"))
    rng = np.random.default_rng(0)
    return rewrite(
        onnx_graph(
            f"g (float[batch,64] left, float[batch,64] right) => (float[batch,64] y)"
            f" {{ {body} y = Sub(left3, right3) }}",
            weights={n: rng.standard_normal((64, 64)).astype(np.float32) for n in "wv"},
        )
    )[0]


def test_both_forms_are_raced_and_the_winner_ships(graph, tmp_path):
    layout = whole(graph, partition(graph))
    (stage,) = layout.stages
    feed = random_feed(graph, 1)
    track = Track(stage, [feed], tmp_path, 1, True)
    kinds = engine_kinds("onnxruntime", 1)
    lane = race_floats(layout, {stage.name: track}, kinds).lanes
    assert {kind.batched for _, kind in lane["whole"].ratios} == {False, True}
    _, winner = lane["whole"].best([NONE], anything)
    assert lane["whole"].ratios[NONE, winner] == min(lane["whole"].ratios.values())
    answers = []
    for kind in kinds:
        candidate = build(f"c{kind.batched:d}", layout, float_models, (kind,), tmp_path)
        (path,) = candidate.files.values()
        session = session_class(kind.backend)(path, SessionOptions(threads=1))
        answers += session.run(feed)
        session.close()
        assert candidate.variant.engines[0].options == {}
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5, atol=1e-5)


def test_stages_of_one_encoder_each_are_not_batched(graph, tmp_path):
    layout = staged(partition(graph))
    tracks = {
        s.name: Track(s, [{i.name: np.zeros((1, 64), np.float32) for i in s.inputs}], tmp_path, 1, False)
        for s in layout.stages
    }
    lanes = race_floats(layout, tracks, engine_kinds("onnxruntime", 1)).lanes
    assert not any(kind.batched for lane in lanes.values() for _, kind in lane.ratios)


def test_kinds_name_their_form():
    kinds = engine_kinds("onnxruntime", 2)
    assert [str(k) for k in kinds if k.batched] == [f"{k}, one batch" for k in kinds if not k.batched]
    assert [k.preparation for k in kinds] == ["cpu", "cpu", "cpu-batched", "cpu-batched"]
