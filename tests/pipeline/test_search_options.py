"""What the user may ask of the search, and what the bundle then holds."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from edgemm.cli import cli
from edgemm.errors import BackendError, QuantizationError
from edgemm.pipeline import ConvertResult, variants
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.integers import Integers
from edgemm.pipeline.proposals import Proposal
from edgemm.pipeline.race import Track
from edgemm.pipeline.scoring import Scorers
from edgemm.quant.measure import ChainMeasure
from edgemm.runtime import open_session
from edgemm.runtime import turns as timing
from edgemm.runtime.latency import Latencies
from edgemm.runtime.openvino import capabilities

Convert = Callable[..., ConvertResult]
BUDGET = {"max_drop": 0.05}


def report(result: ConvertResult) -> dict[str, Any]:
    return json.loads((result.path / "report" / "search.json").read_text())


def test_the_front_is_in_the_bundle_as_numbers_and_as_a_plot(convert_onnx: Convert) -> None:
    result = convert_onnx(quantize={"precision": "int8"}, evaluate=BUDGET, layout="auto", engine="auto")
    data = report(result)
    chosen = [p for p in data["points"] if p["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["fits"]
    assert set(chosen[0]["blank"]) == {"image", "audio"}
    assert {g["stage"] for g in data["groups"]} <= {"image", "audio", "fusion"}
    costs = [g["cost"] for g in data["groups"] if g["name"] in chosen[0]["setting"]]
    assert costs
    assert all(c > 0 for c in costs)
    assert set(data["stages"]) <= {"image", "audio", "fusion"}
    root = ET.fromstring((result.path / "report" / "front.svg").read_text())
    assert root.tag.endswith("svg")


def test_blank_samples_are_evaluated_and_in_the_budget(convert_onnx: Convert, data: Any) -> None:
    result = convert_onnx(quantize={"precision": "int8"}, evaluate=BUDGET)
    accuracy = result.to_json()["variants"][0]["accuracy"]
    assert set(accuracy["blank"]) == {"image", "audio"}
    for blank in accuracy["blank"].values():
        assert blank["drop"] <= 0.05
        assert blank["float"] < accuracy["float"]  # a modality is missing, also for the float model
    without = data | {"blank_share": 0.0}
    none = convert_onnx("none.edgemm", quantize={"precision": "int8"}, evaluate=BUDGET, data=without)
    assert "blank" not in none.to_json()["variants"][0]["accuracy"]


def test_size_is_an_objective(convert_onnx: Convert) -> None:
    sizes = {}
    for objective in ("latency", "size"):
        quantize = {"precision": "int8", "objective": objective}
        result = convert_onnx(f"{objective}.edgemm", quantize=quantize, evaluate=BUDGET)
        sizes[objective] = result.shipped.size_bytes
        assert result.shipped.accuracy is not None
        assert result.shipped.accuracy["drop"] <= 0.05
    assert sizes["size"] < sizes["latency"]
    assert report(result)["unit"] == "MB"


def test_accuracy_is_an_objective(convert_onnx: Convert) -> None:
    quantize = {"precision": "auto", "objective": "accuracy"}
    result = convert_onnx(quantize=quantize, evaluate=BUDGET)
    assert result.shipped.accuracy is not None
    assert result.shipped.accuracy["drop"] <= 0  # float is the most accurate, and no latency was asked for


def test_a_latency_that_nothing_keeps_is_said(convert_onnx: Convert) -> None:
    with pytest.raises(QuantizationError, match=r"--max-latency-ms 1e-06") as caught:
        convert_onnx(quantize={"precision": "int8", "max_latency_ms": 1e-6}, evaluate=BUDGET)
    assert caught.value.hint


def test_a_search_that_was_run_is_not_run_again(
    convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = convert_onnx("a.edgemm", quantize={"precision": "int8"}, evaluate=BUDGET)
    assert (tmp_path / "cache" / "edgemm" / "search.jsonl").stat().st_size > 0
    with monkeypatch.context() as patch:
        patch.setattr(ChainMeasure, "_drop", lambda *a: pytest.fail("scored again"))
        second = convert_onnx("b.edgemm", quantize={"precision": "int8"}, evaluate=BUDGET)
    assert report(first) == report(second)
    with monkeypatch.context() as patch:
        patch.setattr(ChainMeasure, "_drop", lambda *a: 0.0)
        third = convert_onnx("c.edgemm", quantize={"precision": "int8", "cache": False}, evaluate=BUDGET)
    assert report(third) != report(first) or all(p["drop"] == 0 for p in report(first)["points"])


def test_a_search_without_time_still_ships_the_best_so_far(convert_onnx: Convert) -> None:
    result = convert_onnx(quantize={"precision": "int8", "search_seconds": 0, "cache": False}, evaluate=BUDGET)
    assert result.shipped.precision == "int8"
    assert not report(result)["finished"]


def test_openvino_ships_with_a_variant_for_onnx_runtime(convert_onnx: Convert, evaluation: Any) -> None:
    result = convert_onnx(engine="openvino", quantize={"precision": "int8"}, evaluate=BUDGET)
    names = [v.name for v in result.manifest.shipped]
    assert result.shipped.backend == "openvino"
    answers = []
    for name in names:
        with open_session(result.path, variant=name) as session:
            feed = {n: evaluation[n][:32] for n in ("image", "audio")}
            answers.append(session.run(feed)["logits"])
    np.testing.assert_allclose(answers[0].argmax(-1), answers[-1].argmax(-1))


def test_an_engine_that_is_missing_is_an_error(convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemm.pipeline.engines.installed", lambda name: name != "openvino")
    with pytest.raises(BackendError, match="'openvino' is not installed") as caught:
        convert_onnx(engine="openvino")
    assert "edgemm[openvino]" in caught.value.hint


def test_engines_and_layouts_are_chosen_by_the_race(
    convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread is declared ten times as fast: then that is what the bundle asks for."""
    monkeypatch.setattr(Track, "ratio", lambda self, model, kind: 0.1 if kind.threads == 1 else 1.0)
    result = convert_onnx(quantize={"precision": "fp32"}, layout="staged", engine="auto")
    shipped = result.shipped
    if shipped.layout == "staged":  # the graph as it was exported may still win the last measurement
        assert all(e.options["threads"] == 1 for e in shipped.engines)


QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits")
ROUNDING = pytest.mark.skipif("BF16" not in capabilities(), reason="this processor has no bf16 arithmetic")


@pytest.fixture
def bf16_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that round to bf16 are declared ten times as fast as everything, integers twice as fast as float."""

    def ratio(track: Track, model: ir.Model, kind: EngineKind) -> float:
        quantized = any(node.op_type in QUANTIZED for node in model.graph)
        return 0.5 if quantized else 1.0 if kind.exact else 0.1

    monkeypatch.setattr(Track, "ratio", ratio)
    monkeypatch.setattr("edgemm.pipeline.variants.too_slow", lambda *given: None)


@ROUNDING
@pytest.mark.usefixtures("bf16_wins")
def test_where_rounding_wins_one_integer_plan_is_kept_for_other_devices(convert_onnx: Convert) -> None:
    result = convert_onnx(quantize={"precision": "auto", "cache": False}, evaluate=BUDGET, engine="auto")
    assert result.shipped.precision == "bf16"
    data = report(result)
    assert len(data["points"]) == 1
    assert "faster than every integer form" in " ".join(data["steps"])
    assert data["stages"]  # what a stage costs is told all the same
    others = {v.precision: v.backend for v in result.manifest.shipped if v is not result.shipped}
    assert others == {"int8": "onnxruntime"}


@ROUNDING
@pytest.mark.usefixtures("bf16_wins")
def test_where_rounding_wins_and_is_refused_the_search_is_made_up_for(
    convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Integers] = []
    search = Integers.search

    def noted(integers: Integers) -> list[Proposal]:
        searched.append(integers)
        return search(integers)

    monkeypatch.setattr(Integers, "search", noted)
    monkeypatch.setattr("edgemm.pipeline.variants.inaccurate", lambda *given: None if searched else "refused")
    result = convert_onnx(quantize={"precision": "auto", "cache": False}, evaluate=BUDGET, engine="auto")
    assert len(searched) == 1
    assert result.shipped.precision == "int8"
    assert any(g["gain"] is not None for g in report(result)["groups"])  # it asked what each group gains


def test_what_fails_on_the_evaluation_samples_steps_back_along_the_front(
    convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan that the search likes best is refused: a milder one ships."""
    refusals = iter(["too far off"])
    monkeypatch.setattr(
        "edgemm.pipeline.variants.inaccurate",
        lambda recipe, accuracy: next(refusals, None) if accuracy["variant"] != accuracy["float"] else None,
    )
    monkeypatch.setattr("edgemm.pipeline.variants.too_slow", lambda *given: None)
    result = convert_onnx(
        quantize={"precision": "int8", "cache": False}, evaluate=BUDGET, layout="staged", engine="onnxruntime"
    )
    points = [p for p in report(result)["points"] if p["fits"]]
    assert len(points) > 1
    assert sum(p["chosen"] for p in points) == 1


@pytest.fixture
def integers_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says that every integer form takes half the time of every float."""

    def ratio(track: Track, model: ir.Model, kind: EngineKind) -> float:
        return 0.5 if any(node.op_type in QUANTIZED for node in model.graph) else 1.0

    monkeypatch.setattr(Track, "ratio", ratio)


@pytest.mark.usefixtures("integers_win")
def test_what_is_far_slower_is_not_tried_again_on_the_same_engines(
    convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers are declared slow: milder plans on the same engines are left out."""
    measured: list[tuple[bool, float]] = []
    time_sessions = variants.time_sessions

    def noted(sessions: Any, feeds: Any, *, seconds: float) -> Any:
        measured.append((any(n.startswith("int8") for n in sessions), seconds))
        return time_sessions(sessions, feeds, seconds=seconds)

    monkeypatch.setattr("edgemm.pipeline.variants.time_sessions", noted)
    monkeypatch.setattr("edgemm.pipeline.variants.too_slow", lambda *given: "slow")
    monkeypatch.setattr("edgemm.pipeline.variants.far_slower", lambda *given: True)
    quantize = {"precision": "auto", "cache": False, "measure_seconds": 0.4}
    result = convert_onnx(quantize=quantize, evaluate=BUDGET, layout="staged", engine="onnxruntime")
    assert result.shipped.precision == "fp32"
    assert [seconds for integer, seconds in measured if integer] == [0.4]


@pytest.mark.usefixtures("integers_win")
def test_what_is_slow_is_scored_only_to_be_told(convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers are declared slow, though not far: all are timed, the first is scored, float ships."""
    timed: list[set[str]] = []
    scored: list[str] = []
    time_sessions, measure = variants.time_sessions, Scorers.measure

    def noted(sessions: Any, feeds: Any, *, seconds: float) -> Any:
        timed.append({name for name in sessions if name.startswith("int8")})
        return time_sessions(sessions, feeds, seconds=seconds)

    def told(scorers: Scorers, session: Any, tell: Any) -> Any:
        scored.append(session.backend)
        return measure(scorers, session, tell)

    def slow(recipe: Any, judged: Any, sure: Any) -> str | None:
        return "slow" if judged.proposal.integer else None

    monkeypatch.setattr("edgemm.pipeline.variants.time_sessions", noted)
    monkeypatch.setattr("edgemm.pipeline.variants.too_slow", slow)
    monkeypatch.setattr("edgemm.pipeline.variants.far_slower", lambda *given: False)
    monkeypatch.setattr(Scorers, "measure", told)
    quantize = {"precision": "auto", "cache": False, "measure_seconds": 0.2}
    result = convert_onnx(quantize=quantize, evaluate=BUDGET, engine="onnxruntime")
    assert result.shipped.precision == "fp32"
    assert any(timed)
    assert len(scored) == 2, timed
    (refused,) = [v for v in result.manifest.variants if v.refused]
    assert (refused.refused, refused.accuracy is not None) == ("slow", True)


def test_single_calls_after_a_pause_count_as_well(convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers that are fast in a row and slow one by one do not ship."""
    measured = timing._paced

    def paced(sessions: Any, feeds: Any, seconds: float) -> dict[str, Latencies]:
        found = measured(sessions, feeds, seconds)
        return {n: Latencies(v.seconds * (50 if n.startswith("int8") else 1)) for n, v in found.items()}

    monkeypatch.setattr(timing, "_paced", paced)
    result = convert_onnx(quantize={"precision": "auto", "cache": False}, evaluate=BUDGET)
    assert result.shipped.precision != "int8"
    refused = [v.refused for v in result.manifest.variants if v.refused]
    assert any("when calls come one by one" in text for text in refused) or not report(result)["points"]


def test_blank_samples_and_a_missed_latency_are_told(convert_onnx: Convert) -> None:
    result = convert_onnx(
        quantize={"precision": "auto", "objective": "accuracy", "max_latency_ms": 1e-6}, evaluate=BUDGET
    )
    text = "\n".join(result.summary_lines())
    assert "with image blank" in text
    assert "with audio blank" in text
    assert any("nothing is fast enough" in note for note in result.manifest.info["notes"])


def test_an_engine_far_behind_is_raced_once(convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[str, str], int] = {}

    def ratio(track: Track, model: ir.Model, kind: EngineKind) -> float:
        if any(node.op_type in QUANTIZED for node in model.graph):
            asked[track.stage.name, kind.backend] = asked.get((track.stage.name, kind.backend), 0) + 1
        return 1.0 if kind.backend == "openvino" else 2.0

    monkeypatch.setattr(Track, "ratio", ratio)
    convert_onnx(quantize={"precision": "auto", "cache": False, "search_seconds": 0}, layout="auto", engine="auto")
    assert max(asked[stage, "openvino"] for stage in ("image", "audio")) > 1
    assert all(asked.get((stage, "onnxruntime"), 0) <= 1 for stage in ("image", "audio"))


# -- edgemm plan ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(model_onnx: Path, trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`edgemm plan MODEL --save`, called once: the output, and the folder with plan.json."""
    folder = tmp_path_factory.mktemp("plan")
    arguments = ["plan", str(model_onnx), "--save", str(folder / "plan.json"), *_data(trained_folder)]
    done = CliRunner().invoke(cli, [*arguments, "--precision", "int8"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output, folder


def _data(folder: Path) -> list[str]:
    files = ["--calib", str(folder / "calib.npz"), "--eval", str(folder / "eval.npz"), "--label", "label"]
    return [*files, "--max-drop", "0.05", "--layout", "whole", "--engine", "onnxruntime"]


def test_plan_tells_what_why_cost_and_front(planned: Any) -> None:
    out, folder = planned
    plan = json.loads((folder / "plan.json").read_text())
    for decision in plan["decisions"]:
        assert decision["rule"] in out
    assert "int8" in out
    assert "drop of the metric when one stage alone is integer" in out
    assert "front (budget 0.05)" in out
    assert "ships: cpu-int8 (whole, onnxruntime)" in out
    assert any(d.get("cost") for d in plan["decisions"])


def test_an_edited_plan_is_applied(planned: Any, model_onnx: Path, trained_folder: Path) -> None:
    _, folder = planned
    plan = json.loads((folder / "plan.json").read_text())
    integer = [d for d in plan["decisions"] if d["precision"] == "int8"]
    integer[0] |= {"precision": "fp32", "rule": "by-hand", "reason": "tried"}
    (folder / "edited.json").write_text(json.dumps(plan))
    output = folder / "edited.edgemm"
    arguments = ["convert", str(model_onnx), "-o", str(output), "--plan", str(folder / "edited.json")]
    done = CliRunner().invoke(cli, [*arguments, *_data(trained_folder), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    applied = json.loads((output / "plans" / "cpu-int8.json").read_text())
    kept = {d["node"]: d["precision"] for d in applied["decisions"]}
    assert kept[integer[0]["node"]] == "fp32"
    assert sum(p == "int8" for p in kept.values()) == len(integer) - 1
    by_hand = next(d for d in applied["decisions"] if d["node"] == integer[0]["node"])
    assert (by_hand["rule"], by_hand["reason"]) == ("by-hand", "tried")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"decisions": 3}'])
def test_a_file_that_is_no_plan_is_refused_before_anything_is_done(
    content: str, convert_onnx: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemm.pipeline.export", lambda *given: pytest.fail("the model was exported first"))
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(QuantizationError, match=r"plan\.json"):
        convert_onnx(quantize={"plan": tmp_path / "plan.json"})


def test_a_plan_for_another_model_is_refused(planned: Any, model_onnx: Path, trained_folder: Path) -> None:
    _, folder = planned
    plan = json.loads((folder / "plan.json").read_text())
    plan["decisions"][0]["node"] = "no_such_node"
    (folder / "wrong.json").write_text(json.dumps(plan))
    arguments = ["convert", str(model_onnx), "-o", str(folder / "wrong.edgemm")]
    done = CliRunner().invoke(cli, [*arguments, "--plan", str(folder / "wrong.json"), *_data(trained_folder)])
    assert done.exit_code != 0
    assert isinstance(done.exception, QuantizationError)
    assert "no_such_node" in str(done.exception)
    assert not (folder / "wrong.edgemm").exists()


def test_plan_of_a_bundle_without_one_says_how_to_get_one(fp32: ConvertResult) -> None:
    done = CliRunner().invoke(cli, ["plan", str(fp32.path)])
    assert done.exit_code != 0
    assert "--calib" in done.exception.hint  # type: ignore[union-attr]
