"""Both layouts in one bundle, and how the engines of a staged one share the cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import concat_model

from edgemm.partition import partition
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.candidates import WHOLE, Layout, staged
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.lineup import NONE, Lane, LineUp
from edgemm.pipeline.pairing import worth_trying
from edgemm.runtime import FusionSession, open_session

Convert = Callable[..., ConvertResult]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def both(model_onnx: Path, data: Any, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    """One engine for everything, and one per stage beside it."""
    recipe = {"model": {"path": model_onnx}, "data": data, "quantize": {"precision": "fp32"}}
    return convert(
        recipe | {"layout": "both", "engine": "onnxruntime"}, tmp_path_factory.mktemp("both") / "both.edgemm"
    )


def test_both_layouts_ship_and_the_manifest_says_how_far_they_are_apart(
    both: ConvertResult, evaluation: Arrays
) -> None:
    whole, stages = both.manifest.shipped
    assert (whole.layout, stages.layout) == ("whole", "staged")
    assert (whole.reuse, stages.reuse) == (stages.name, "") == ("cpu-fp32-staged", "")
    assert whole.accuracy is not None
    assert stages.accuracy is not None
    found = both.manifest.measured["layouts"][whole.name]
    assert found["variant"] == stages.name
    assert found["whole_ms"] > 0 < found["staged_ms"]
    bound = found["parity"]["max_abs"]
    assert 0 <= bound < 1e-4
    values = []
    for variant in (whole, stages):
        with open_session(both.path, variant=variant.name, cache="off") as session:
            values.append(collect_all(session, evaluation))
    assert np.abs(values[0] - values[1]).max() <= max(10 * bound, 1e-5)
    assert set(both.manifest.measured["latency"]) == {whole.name, stages.name}
    assert any(f"and {stages.name} for what is unchanged" in line for line in both.summary_lines())


def collect_all(session: FusionSession, arrays: Arrays) -> np.ndarray:
    names = [i.name for i in session.io.feed_inputs]
    rows = range(len(arrays[names[0]]))
    return np.concatenate([session.run({n: arrays[n][k : k + 1] for n in names})["logits"] for k in rows])


def test_session_on_both_takes_one_engine_for_what_is_new(both: ConvertResult, evaluation: Arrays) -> None:
    with open_session(both.path, cache="marks") as session:
        feed = {i.name: evaluation[i.name][:1] for i in session.io.feed_inputs}
        session.run(feed, changed=session.io.modality_names())
        for _ in range(2):
            session.run(feed, changed={"image"})
        info = session.cache_info()
    assert info.whole == 1
    assert info.reused["audio"] == 1


def test_staged_variant_has_the_schedule_that_was_measured(convert_onnx: Convert) -> None:
    result = convert_onnx(layout="staged", engine="auto")
    shipped = result.shipped
    ratios = result.manifest.measured["latency"][shipped.name]["schedules"]
    assert shipped.schedule is not None
    assert ratios["sequential"] == 1.0
    assert str(shipped.schedule) in ratios
    assert "parallel" in ratios
    with open_session(result.path) as session:
        assert str(session.schedule) == str(shipped.schedule)


def test_nothing_is_measured_where_everything_is_given(convert_onnx: Convert) -> None:
    result = convert_onnx(layout="staged")
    assert result.shipped.schedule is None
    assert "schedules" not in result.manifest.measured["latency"][result.shipped.name]


def lineup(layout: Layout, times: dict[str, float]) -> LineUp:
    return LineUp(layout, {name: Lane(ms, {(NONE, EngineKind()): 1.0}) for name, ms in times.items()})


@pytest.mark.parametrize(
    ("whole", "image", "audio", "worth"),
    [
        (10.0, 6.0, 5.0, True),
        (10.0, 4.0, 5.0, False),  # the stages are no slower
        (10.0, 40.0, 40.0, False),  # what is left without an encoder is slower
        (0.03, 0.03, 0.03, False),  # as in small models
    ],
)
def test_both_are_tried_where_one_engine_is_faster_and_reuse_faster_still(
    whole: float, image: float, audio: float, worth: bool
) -> None:
    graph = partition(concat_model())
    layouts = staged(graph), Layout(WHOLE, (replace(graph.stages[0], name=WHOLE, role="whole"),), (("all",),))
    names = [s.name for s in graph.stages]
    times = dict(zip(names, (image, audio, 0.1), strict=True))
    found = [lineup(layouts[0], times), lineup(layouts[1], {WHOLE: whole})]
    assert worth_trying(found) == worth
    assert not worth_trying(found[:1])
