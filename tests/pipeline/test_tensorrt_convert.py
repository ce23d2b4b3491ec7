"""Conversions for a Jetson, whose engines only it can build: plans, graphs, and their accuracy without its GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fusion_nets import samples
from nvidia_models import CONVOLUTIONS, FACTOR, LOUD, PAIR, PRODUCTS, STRIDED, VOLUME, rows, save, strided

from edgemm.backends._trt.onnx_file import read_onnx
from edgemm.backends.targets import find_target
from edgemm.backends.tensorrt import OptimizationProfile, check_profiles
from edgemm.bundle import read_manifest, verify
from edgemm.errors import BackendError, QuantizationError, RecipeError
from edgemm.lint import lint
from edgemm.pipeline import ConvertResult, convert
from edgemm.quant.plan import QuantPlan
from edgemm.runtime import open_session

ORIN, THOR = "jetson-orin-nano", "jetson-thor"
NO_TIME = {"calibrator": "minmax", "search_seconds": 0}
Sections = dict[str, Any]
Made = Callable[..., ConvertResult]


@pytest.fixture(scope="module")
def many(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sections:
    """The `data` section with 600 samples, of which 180 are searched with: 0.02 is 3 of them."""
    path = tmp_path_factory.mktemp("many") / "calib.npz"
    np.savez(path, **samples(600, 2))
    return {"calib": str(path), "eval": str(trained_folder / "eval.npz"), "label": "label"}


@pytest.fixture(scope="module")
def orin(model_onnx: Path, many: Sections, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    """The trained model for a Jetson Orin Nano."""
    recipe = {"model": {"path": model_onnx}, "data": many, "evaluate": {"max_drop": 0.02}, "target": ORIN}
    return convert(recipe, tmp_path_factory.mktemp("orin") / "orin.edgemm")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Converts a model of `nvidia_models` for a Jetson, with the arrays as samples and any sections."""

    def call(
        text: str, weights: dict[str, np.ndarray], arrays: dict[str, np.ndarray] | None, **sections: Any
    ) -> ConvertResult:
        model = save(text, weights, tmp_path / "model.onnx")
        given: Sections = {"model": {"path": model}, "target": ORIN, "quantize": {"calibrator": "minmax"}}
        if arrays is not None:
            np.savez(tmp_path / "calib.npz", **arrays)
            given["data"] = {"calib": str(tmp_path / "calib.npz")}
        return convert(given | sections, tmp_path / "out.edgemm", force=True)

    return call


def decisions(result: ConvertResult, **wanted: Any) -> list[Any]:
    """Returns the decisions of the first variant's plan that are as wanted."""
    path = result.path / "plans" / f"{result.shipped.name}.json"
    plan = QuantPlan.from_json(json.loads(path.read_text()))
    return [d for d in plan.decisions if all(getattr(d, k) == v for k, v in wanted.items())]


def profiles_of(result: ConvertResult) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Returns engine -> symbol -> (min, opt, max), by the stages' own symbols."""
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for engine in result.shipped.engines:
        graph = read_onnx(result.path / engine.file)
        profiles = tuple(OptimizationProfile.from_json(p) for p in engine.options["profiles"])
        check_profiles(graph.inputs, profiles)
        sizes = found.setdefault(engine.name, {})
        for spec in graph.inputs:
            for axis, symbol in enumerate(spec.shape):
                if isinstance(symbol, str):
                    each = profiles[0].shapes[spec.name]
                    sizes[symbol] = (each.min[axis], each.opt[axis], each.max[axis])
    return found


# -- what is in the bundle ---------------------------------------------------------------------------------------


def test_the_variant_is_what_a_device_builds_from(orin: ConvertResult) -> None:
    manifest = read_manifest(orin.path)
    verify(orin.path, manifest)
    (variant,) = manifest.shipped
    assert (variant.name, variant.target, variant.backend) == (f"{ORIN}-int8", ORIN, "tensorrt")
    assert (variant.precision, variant.layout) == ("int8", "staged")
    assert [e.name for e in variant.engines] == ["image", "audio", "fusion"]
    assert variant.decisions["int8"] >= 2
    for engine in variant.engines:
        assert engine.file == f"engines/{variant.name}/{engine.name}.onnx"
        assert set(engine.options) == {"module", "profiles", "precisions", "build"}
        assert engine.options["module"] == "tensorrt"
        graph = ir.load(orin.path / engine.file)
        kinds = {n.op_type for n in graph.graph}
        assert ("QuantizeLinear" in kinds) == ("int8" in engine.options["precisions"])
        assert "fp16" in engine.options["precisions"]
        found = lint(graph, find_target(ORIN))
        assert not [f for f in found if f.severity == "error"]
        profile = OptimizationProfile.from_json(engine.options["profiles"][0])
        check_profiles(read_onnx(orin.path / engine.file).inputs, [profile])
    assert variant.size_bytes == sum((orin.path / e.file).stat().st_size for e in variant.engines)
    assert variant.size_bytes < orin.manifest.info["float_size_bytes"]


def test_accuracy_is_simulated_and_that_of_the_graphs(orin: ConvertResult, evaluation: Any) -> None:
    accuracy = orin.shipped.accuracy
    assert accuracy is not None
    assert accuracy["simulated"] is True
    assert accuracy["drop"] <= accuracy["budget"] == 0.02
    assert set(accuracy["blank"]) == {"image", "audio"}
    with open_session(orin.path) as session:  # no GPU here: the same graphs on the CPU
        logits = session.run({n: evaluation[n] for n in ("image", "audio")})["logits"]
    assert float((logits.argmax(1) == evaluation["label"]).mean()) == accuracy["variant"]


def test_no_latency_is_made_up(orin: ConvertResult) -> None:
    (variant,) = orin.to_json()["variants"]
    assert variant["latency"] is None
    assert variant["built"] is None
    assert orin.manifest.measured["latency"] == {}
    assert all(row[5:] == ("", "") for row in orin.stage_rows())
    lines = orin.summary_lines()
    assert "simulated on this CPU" in lines[0]
    assert f"latency    unmeasured: it takes a device with {ORIN}" in lines
    assert any("`edgemm build BUNDLE`" in note for note in orin.manifest.info["notes"])


def test_ranges_and_decisions_are_kept(orin: ConvertResult) -> None:
    table = json.loads((orin.path / "calibration-tensorrt.json").read_text())
    assert table["samples"] == 420
    assert decisions(orin, precision="int8")
    assert all(d.rule and d.reason for d in decisions(orin))
    counts = {p: len(decisions(orin, precision=p)) for p in ("int8", "fp16")}
    assert counts == {p: orin.shipped.decisions[p] for p in counts}
    assert all(d.gain is None for d in decisions(orin))


def test_equal_conversions_give_equal_bytes(
    orin: ConvertResult, many: Sections, model_onnx: Path, tmp_path: Path
) -> None:
    recipe = {"model": {"path": model_onnx}, "data": many, "evaluate": {"max_drop": 0.02}, "target": [ORIN]}
    again = convert(recipe, tmp_path / "again.edgemm")
    assert orin.manifest.files == again.manifest.files


# -- precisions --------------------------------------------------------------------------------------------------


def test_what_int8_breaks_goes_back_to_half(made: Made) -> None:
    weights = dict(PRODUCTS)
    weights["wb"] = weights["wb"].copy()
    weights["wb"][0] = 0.0  # what is large there is not even used
    result = made(PAIR, weights, rows(120, 1, b=3000.0), evaluate={"max_drop": 0.03})
    assert result.shipped.precision == "int8"
    assert result.shipped.accuracy is not None
    assert result.shipped.accuracy["drop"] <= 0.03
    (back,) = decisions(result, rule="accuracy-budget")
    assert (back.stage, back.precision) == ("b", "fp16")
    assert [d.stage for d in decisions(result, precision="int8", op="MatMul")] == ["a"]
    searched = json.loads((result.path / "report/search-tensorrt.json").read_text())
    assert [p["fits"] for p in searched["points"]].count(False) >= 1


def test_without_time_a_milder_plan_ships_before_half_alone(made: Made) -> None:
    weights = {**PRODUCTS, "wa": PRODUCTS["wa"].copy()}
    weights["wa"][0] = 0.0
    given = rows(120, 1, a=3000.0)
    result = made(PAIR, weights, given, evaluate={"max_drop": 0.03}, quantize=NO_TIME)
    assert result.shipped.name == f"{ORIN}-int8"
    assert [d.stage for d in decisions(result, precision="int8", op="MatMul")] == ["b"]
    searched = json.loads((result.path / "report/search-tensorrt.json").read_text())
    assert searched["finished"] is False
    assert [p["fits"] for p in searched["points"]] == [False, True]
    assert (
        result.manifest.files
        == made(PAIR, weights, given, evaluate={"max_drop": 0.03}, quantize=NO_TIME).manifest.files
    )


def test_what_no_plan_keeps_is_refused_with_its_drop(made: Made) -> None:
    weights = {**PRODUCTS, "wa": PRODUCTS["wa"].copy(), "wb": PRODUCTS["wb"].copy()}
    weights["wa"][0] = weights["wb"][0] = 0.0
    arrays = rows(120, 1, a=3000.0, b=3000.0)
    result = made(PAIR, weights, arrays, evaluate={"max_drop": 0.03})
    assert result.shipped.name == f"{ORIN}-fp16"
    (refused,) = [v for v in result.manifest.variants if v.refused]
    assert refused.name == f"{ORIN}-int8"
    assert "drops by" in refused.refused
    assert "search samples" in refused.refused
    with pytest.raises(QuantizationError, match=f"int8 was demanded and cannot ship for {ORIN}: .*drops by"):
        made(
            PAIR,
            weights,
            arrays,
            evaluate={"max_drop": 0.03},
            quantize={"precision": "int8", "calibrator": "minmax"},
        )


def test_values_that_fp16_cannot_hold_stay_float(made: Made) -> None:
    arrays = rows(120, 2)
    result = made(LOUD, PRODUCTS | FACTOR, arrays, quantize={"precision": "fp16"})
    over = decisions(result, rule="overflow")
    assert {d.op for d in over} == {"Mul", "MatMul", "Div"}
    assert all(d.precision == "fp32" and "fp16 holds" in d.reason for d in over)
    assert decisions(result, precision="fp16")
    assert result.shipped.accuracy is not None
    assert result.shipped.accuracy["drop"] <= 0.01
    with open_session(result.path) as session:
        assert np.isfinite(session.run({n: v[:9] for n, v in arrays.items()})["scores"]).all()


def test_without_samples_everything_is_float(made: Made) -> None:
    result = made(PAIR, PRODUCTS, None)
    assert result.shipped.name == f"{ORIN}-fp32"
    assert result.shipped.accuracy is None
    assert not [f for f in result.manifest.files if f.startswith(("plans/", "calibration"))]
    assert any(n.startswith("no calibration samples") for n in result.manifest.info["notes"])
    with pytest.raises(RecipeError, match=r"precision is fp16 but data\.calib is missing"):
        made(PAIR, PRODUCTS, None, quantize={"precision": "fp16"})


def test_halves_alone_where_they_are_asked_for(made: Made) -> None:
    result = made(PAIR, PRODUCTS, rows(60, 3), quantize={"precision": "fp16"})
    assert result.shipped.name == f"{ORIN}-fp16"
    assert "int8" not in result.shipped.decisions
    assert {p for e in result.shipped.engines for p in e.options["precisions"]} == {"fp16"}
    with pytest.raises(RecipeError, match="precision fp16 is for NVIDIA targets, not for 'cpu'"):
        made(PAIR, PRODUCTS, rows(60, 3), quantize={"precision": "fp16"}, target=["cpu", ORIN])


# -- sizes -------------------------------------------------------------------------------------------------------


def test_sizes_are_read_from_the_samples(made: Made, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for length in (32, 48, 48, 80):
        np.savez(shards / f"{len(list(shards.iterdir()))}.npz", **strided(20, length))
    result = made(STRIDED, CONVOLUTIONS, None, data={"calib": str(shards)})
    found = profiles_of(result)
    assert found["sound"] == {"batch": (1, 1, 8), "time": (32, 48, 80)}
    lengths = [((n - 3) // 2 + 1 - 3) // 2 + 1 for n in (32, 48, 80)]
    between = {s: r for s, r in found["fusion"].items() if s != "batch"}
    assert list(between.values()) == [tuple(lengths)]
    assert {sizes["batch"] for sizes in found.values()} == {(1, 1, 8)}


def test_sizes_of_the_recipe_come_first(made: Made) -> None:
    sizes = {"batch": [1, 4, 16], "time": [20, 64, 100]}
    result = made(STRIDED, CONVOLUTIONS, strided(60, 48), profiles=sizes)
    found = profiles_of(result)
    assert found["sound"] == {"batch": (1, 4, 16), "time": (20, 64, 100)}
    assert found["motion"] == {"batch": (1, 4, 16)}
    two = made(STRIDED, CONVOLUTIONS, strided(60, 48), profiles=[sizes, {"time": [200, 200, 200]}])
    (engine,) = [e for e in two.shipped.engines if e.name == "sound"]
    assert [p["shapes"]["sound"]["max"] for p in engine.options["profiles"]] == [[16, 16, 100], [8, 16, 200]]


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"tyme": [1, 1, 1]}, "no dynamic dimension 'tyme' in this model"),
        ({"time": [64, 32, 100]}, "'time' got 64..32..100"),
        ({"time": [2, 48, 100]}, "does not run at its smallest sizes"),
    ],
)
def test_sizes_that_are_none_are_refused(made: Made, profiles: Sections, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        made(STRIDED, CONVOLUTIONS, strided(60, 48), profiles=profiles)


def test_a_size_that_nothing_tells_is_asked_for(made: Made) -> None:
    with pytest.raises(RecipeError, match="'time' has no range") as caught:
        made(STRIDED, CONVOLUTIONS, None)
    assert "--profile time=MIN:OPT:MAX" in caught.value.hint
    result = made(STRIDED, CONVOLUTIONS, None, profiles={"time": [32, 48, 80]})
    assert profiles_of(result)["sound"]["time"] == (32, 48, 80)


# -- targets -----------------------------------------------------------------------------------------------------


def test_several_targets_share_a_bundle(model_onnx: Path, many: Sections, tmp_path: Path, evaluation: Any) -> None:
    recipe = {
        "model": {"path": model_onnx},
        "data": many,
        "quantize": {"precision": "auto"},
        "evaluate": {"max_drop": 0.02},
        "target": ["cpu", ORIN, THOR, "cuda", "cpu"],
        "layout": "staged",
        "engine": "onnxruntime",
    }
    result = convert(recipe, tmp_path / "several.edgemm")
    assert [v.target for v in result.manifest.shipped] == ["cpu", ORIN, THOR, "cuda"]
    assert [v.target for v in result.other_targets()] == [ORIN, THOR, "cuda"]
    orin, thor, cuda = result.other_targets()
    assert orin.accuracy == thor.accuracy
    assert (cuda.backend, cuda.precision) == ("ort-cuda", "fp16")
    for a, b in zip(orin.engines, thor.engines, strict=True):
        assert result.manifest.files[a.file]["sha256"] == result.manifest.files[b.file]["sha256"]
    assert result.precision_of(orin, "audio").startswith(f"{orin.engines[1].decisions['int8']} int8")
    text = "\n".join(result.summary_lines())
    assert f"{ORIN}-int8:" in text
    assert f"that of {ORIN}-int8: the same plan" in text
    with open_session(result.path) as session:
        assert session.variant.target == "cpu"
        assert session.run({n: evaluation[n][:2] for n in ("image", "audio")})["logits"].shape == (2, 4)


def test_this_machine_as_a_target(
    convert_onnx: Callable[..., ConvertResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemm.backends.targets.find_gpus", lambda: ())
    result = convert_onnx(target="auto")
    assert result.shipped.target == "cpu"


def test_a_target_that_is_none(made: Made) -> None:
    with pytest.raises(BackendError, match="no target 'rtx-amper'") as caught:
        made(PAIR, PRODUCTS, None, target=["cpu", "rtx-amper"])
    assert "rtx-ampere" in caught.value.hint


def test_one_engine_for_everything(made: Made) -> None:
    staged = made(PAIR, PRODUCTS, rows(60, 3))
    whole = made(PAIR, PRODUCTS, rows(60, 3), layout="whole")
    (engine,) = whole.shipped.engines
    assert engine.stages == tuple(s.name for s in whole.manifest.stages)
    assert whole.shipped.decisions["int8"] == staged.shipped.decisions["int8"] > 0
    assert whole.shipped.accuracy is not None
    assert whole.shipped.accuracy["drop"] <= 0.01


def test_the_lint_speaks_before_anything_is_built(made: Made) -> None:
    with pytest.raises(BackendError, match=f"nothing can ship: {ORIN}-fp32: stage '.*', Det '.*") as caught:
        made(VOLUME, PRODUCTS, rows(60, 3))
    assert "give another target" in caught.value.hint
    both = made(VOLUME, PRODUCTS, rows(60, 3), target=["cpu", ORIN], quantize={"precision": "fp32"})
    assert both.shipped.target == "cpu"
    (refused,) = [v for v in both.manifest.variants if v.refused]
    assert refused.name == f"{ORIN}-fp32"
    assert "Det" in refused.refused


def test_an_edited_plan_is_applied(made: Made, tmp_path: Path) -> None:
    first = made(PAIR, PRODUCTS, rows(60, 3))
    plan = json.loads((first.path / "plans" / f"{ORIN}-int8.json").read_text())
    edited = next(d for d in plan["decisions"] if d["precision"] == "int8" and d["stage"] == "a")
    edited |= {"precision": "fp16", "options": {}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    second = made(PAIR, PRODUCTS, rows(60, 3), quantize={"plan": str(path)})
    assert second.shipped.decisions["int8"] == first.shipped.decisions["int8"] - 1
    assert [d.stage for d in decisions(second, precision="int8", op="MatMul")] == ["b"]
    with pytest.raises(QuantizationError, match="the plan is for 'tensorrt', not for 'cpu'"):
        made(PAIR, PRODUCTS, rows(60, 3), quantize={"plan": str(path)}, target="cpu")
