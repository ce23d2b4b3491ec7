"""Whole conversions of a trained model: what the result says, and that it is so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgemm.bundle import read_manifest, verify
from edgemm.data import Subset, digest_of
from edgemm.errors import QuantizationError, RecipeError
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.race import Track
from edgemm.pipeline.splits import divide, open_splits
from edgemm.quant.plan import QuantPlan
from edgemm.recipe.schema import DataSection
from edgemm.runtime import open_session

Convert = Callable[..., ConvertResult]
Arrays = dict[str, np.ndarray]


def outputs(bundle: Path, arrays: Arrays) -> np.ndarray:
    with open_session(bundle) as session:
        return session.run({"image": arrays["image"], "audio": arrays["audio"]})["logits"]


def accuracy(bundle: Path, arrays: Arrays) -> float:
    return float((outputs(bundle, arrays).argmax(1) == arrays["label"]).mean())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- the result -------------------------------------------------------------------------------------------------


def test_json_has_every_field(int8_called: Any) -> None:
    report = json.loads(int8_called.out)
    assert report["bundle"] == "model.edgemm"
    assert report["inputs"] == [
        {"name": n, "dtype": "float32", "shape": ["batch", *s], "modality": n, "reason": "its own modality"}
        for n, s in (("image", [1, 16, 16]), ("audio", [24, 32]))
    ]
    assert [(s["name"], s["modalities"], s["role"]) for s in report["stages"]] == [
        ("image", ["image"], "encoder"),
        ("audio", ["audio"], "encoder"),
        ("fusion", ["image", "audio"], "fusion head"),
    ]
    assert all(s["nodes"] > 0 and s["parameters"] > 0 for s in report["stages"])
    assert [(j["kind"], j["stage"]) for j in report["joins"]] == [("concat", "fusion")]
    dynamic = report["dynamic"]["dynamic"]
    assert {(d["tensor"], d["axis"], d["symbol"]) for d in dynamic} == {
        (n, 0, "batch") for n in ("image", "audio")
    }
    assert all({1, 2} <= set(d["checked"]) for d in dynamic)
    assert report["dynamic"]["fixed"] == []
    assert report["parity"]["max_abs"] < 1e-4
    assert report["parity"]["cosine"] > 0.99999
    (variant,) = report["variants"]
    assert (variant["target"], variant["precision"], variant["refused"]) == ("cpu", "int8", None)
    assert variant["decisions"]["int8"] > 0
    assert variant["decisions"]["fp32"] > 0
    score, latency = variant["accuracy"], variant["latency"]
    assert (score["metric"], score["budget"], score["samples"]) == ("accuracy", 0.05, 200)
    assert score["drop"] == pytest.approx(score["float"] - score["variant"])
    assert latency["ratio"] == pytest.approx(latency["variant_ms"] / latency["float_ms"])
    assert latency["float_ms"] > 0
    engines = [p for p in (int8_called.bundle / "engines").rglob("*") if p.is_file()]
    assert variant["size_bytes"] == sum(p.stat().st_size for p in engines)
    assert variant["size_bytes"] < report["float_size_bytes"]
    assert {"load", "export", "partition", "calibrate", "search", "measure", "verify", "total"} <= set(
        report["seconds"]
    )
    parts = [value for step, value in report["seconds"].items() if step != "total"]
    assert report["seconds"]["total"] == pytest.approx(sum(parts), abs=0.02)


def test_json_alone_is_on_stdout_and_progress_on_stderr(int8_called: Any) -> None:
    assert int8_called.out.startswith("{")
    assert int8_called.out.count("\n{") == 0
    steps = [line.split()[0] for line in int8_called.err.splitlines()]
    assert [s for s in steps if s in {"load", "export", "partition", "calibrate"}] == [
        *("load", "export", "partition", "calibrate"),
    ]
    assert "\x1b" not in int8_called.err


def test_manifest_says_what_the_result_says(int8: ConvertResult) -> None:
    manifest = read_manifest(int8.path)
    verify(int8.path, manifest)
    assert manifest.to_json() == int8.manifest.to_json()
    assert manifest.info["model"]["source"] == "model.pt2"
    assert manifest.info["tools"].keys() >= {"edgemm", "torch", "onnx", "onnxruntime", "numpy"}
    recipe = json.loads((int8.path / "recipe.json").read_text())
    assert recipe["model"]["path"] == "model.pt2"
    assert recipe["data"]["calib"] == "calib.npz"
    assert "calibration.json" in manifest.files


def test_nothing_of_this_machine_is_outside_measured(int8: ConvertResult, trained_folder: Path) -> None:
    for name, content in tree(int8.path).items():
        assert str(trained_folder).encode() not in content, name


def test_table_lines(int8: ConvertResult) -> None:
    rows = int8.stage_rows()
    assert [row[0] for row in rows] == ["image", "audio", "fusion"]
    assert any(row[4].startswith("int8") for row in rows)
    assert all(float(row[5]) > 0 and float(row[6]) > 0 for row in rows)
    lines = int8.summary_lines()
    assert lines[0].startswith("accuracy   9")
    assert "200 evaluation samples" in lines[0]
    assert [line.rpartition("with ")[2] for line in lines[1:3]] == ["image blank)", "audio blank)"]
    assert "interleaved runs" in lines[3]
    assert "kB" in lines[4]


# -- accuracy and data ------------------------------------------------------------------------------------------


def test_reported_accuracy_is_that_of_the_bundle(int8: ConvertResult, evaluation: Arrays) -> None:
    reported = int8.to_json()["variants"][0]["accuracy"]
    assert accuracy(int8.path, evaluation) == reported["variant"]
    assert reported["variant"] > 0.85


def test_reported_float_accuracy_is_that_of_the_torch_model(
    fp32: ConvertResult, evaluation: Arrays, trained_folder: Path
) -> None:
    module = torch.export.load(trained_folder / "model.pt2").module()
    with torch.no_grad():
        logits = module(torch.from_numpy(evaluation["image"]), torch.from_numpy(evaluation["audio"]))["logits"]
    reported = fp32.to_json()["variants"][0]["accuracy"]
    assert reported["float"] == float((logits.argmax(1).numpy() == evaluation["label"]).mean())
    assert reported["drop"] == 0
    np.testing.assert_allclose(outputs(fp32.path, evaluation), logits.numpy(), atol=1e-4)


def test_parts_are_disjoint_and_the_report_says_which(convert_onnx: Convert, data: Any) -> None:
    section = {"calib": data["calib"], "label": "label", "seed": 3}
    result = convert_onnx(data=section)
    reported = result.to_json()["data"]
    parts = divide(open_splits(DataSection(**section)), DataSection(**section), result.manifest.io, print)
    seen: list[int] = []
    for name in ("calibration", "search", "evaluation"):
        part = getattr(parts, name)
        assert isinstance(part, Subset)
        seen += part.indices
        assert reported[name] == {"samples": len(part), "origin": "calib.npz", "digest": digest_of(part)}
    assert len(seen) == len(set(seen)) == 120
    assert result.to_json()["variants"][0]["accuracy"]["samples"] == reported["evaluation"]["samples"] == 36


def test_own_evaluation_file_is_used_whole(int8: ConvertResult) -> None:
    reported = int8.to_json()["data"]
    assert {name: (part["origin"], part["samples"]) for name, part in reported.items()} == {
        "calibration": ("calib.npz", 84),
        "search": ("calib.npz", 36),
        "evaluation": ("eval.npz", 200),
    }
    assert len({part["digest"] for part in reported.values()}) == 3


def test_without_labels_agreement_is_scored(convert_onnx: Convert, data: Any) -> None:
    score = convert_onnx(data={"calib": data["calib"]}).to_json()["variants"][0]["accuracy"]
    assert (score["metric"], score["float"], score["variant"], score["drop"]) == ("agreement", 1, 1, 0)


def test_labels_may_be_in_the_evaluation_file_only(convert_onnx: Convert, data: Any, tmp_path: Path) -> None:
    with np.load(data["calib"]) as file:
        np.savez(tmp_path / "unlabelled.npz", image=file["image"], audio=file["audio"])
    result = convert_onnx(
        data=data | {"calib": str(tmp_path / "unlabelled.npz")},
        quantize={"precision": "int8"},
        evaluate={"max_drop": 0.05},
    )
    score = result.to_json()["variants"][0]["accuracy"]
    assert (score["metric"], score["samples"]) == ("accuracy", 200)
    assert result.shipped.precision == "int8"


# -- precision --------------------------------------------------------------------------------------------------


def test_equal_conversions_give_equal_bytes(int8: ConvertResult, int8_called: Any) -> None:
    ours, theirs = tree(int8.path), tree(int8_called.bundle)
    manifests = [json.loads(files.pop("manifest.json")) for files in (ours, theirs)]
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    measured = [manifest.pop("measured") for manifest in manifests]
    assert manifests[0] == manifests[1]
    assert measured[0] != measured[1]


def test_demanded_int8_is_int8(int8: ConvertResult) -> None:
    plan = QuantPlan.from_json(json.loads((int8.path / "plans" / "cpu-int8.json").read_text()))
    assert plan.counts()["int8"] == int8.shipped.decisions["int8"]
    assert all(d.rule and d.reason for d in plan.decisions)
    engines = {e.name: int8.path / e.file for e in int8.shipped.engines}
    for stage, file in engines.items():
        assert (b"QuantizeLinear" in file.read_bytes()) == any(d.precision == "int8" for d in plan.stage(stage))


def test_fp32_ships_no_plan_and_no_int8(fp32: ConvertResult) -> None:
    assert [(v.name, v.refused) for v in fp32.manifest.variants] == [("cpu-fp32", None)]
    assert sorted(fp32.manifest.files) == ["engines/cpu-fp32/whole.onnx", "recipe.json"]


def shipped_and_refused(result: ConvertResult) -> tuple[Any, Any]:
    shipped, refused = result.to_json()["variants"]
    assert (shipped["name"], shipped["refused"]) == ("cpu-fp32", None)
    assert (refused["name"], refused["precision"]) == ("cpu-int8", "int8")
    assert refused["engines"] == []
    assert not (result.path / "engines" / "cpu-int8").exists()
    assert any(line.startswith("note: cpu-int8 refused: ") for line in result.summary_lines())
    return shipped, refused


def integers_take(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Lets integer graphs take `ratio` times what they would in float, in every race before the last."""

    def race(track: Track, model: ir.Model, kind: EngineKind) -> float:
        return ratio if any(n.op_type == "QuantizeLinear" for n in model.graph) else 1.0

    def milliseconds(track: Track, one: ir.Model, other: ir.Model, kind: EngineKind) -> tuple[float, float]:
        counts = [sum(n.op_type == "DequantizeLinear" for n in m.graph) for m in (one, other)]
        return 1.0, 1.0 + 0.01 * (counts[0] - counts[1])

    monkeypatch.setattr(Track, "ratio", race)
    monkeypatch.setattr(Track, "milliseconds", milliseconds)


@pytest.fixture
def shifted(data: Any, tmp_path: Path) -> Any:
    """Data whose evaluation part is far louder than anything that calibration has seen."""
    with np.load(data["eval"]) as file:
        loud = {"image": file["image"] * 40, "audio": file["audio"] * 40, "label": file["label"]}
    np.savez(tmp_path / "loud.npz", **loud)
    return data | {"eval": str(tmp_path / "loud.npz")}


def test_auto_ships_float_where_int8_is_over_budget_on_unseen_samples(
    convert_onnx: Convert, shifted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    integers_take(monkeypatch, 0.5)  # whatever this machine's kernels do
    result = convert_onnx(data=shifted, quantize={"precision": "auto"}, evaluate={"max_drop": 0.05})
    shipped, refused = shipped_and_refused(result)
    assert "accuracy drops by" in refused["refused"]
    assert "on 200 evaluation samples, budget 0.05" in refused["refused"]
    assert refused["accuracy"]["drop"] > 0.05
    assert shipped["accuracy"]["drop"] == 0


def test_demanded_int8_over_budget_is_an_error(convert_onnx: Convert, shifted: Any, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="int8 was demanded and cannot ship: accuracy drops by") as caught:
        convert_onnx(data=shifted, quantize={"precision": "int8"}, evaluate={"max_drop": 0.05})
    assert "--max-drop" in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loud.npz"]


@pytest.fixture
def outlier(data: Any, tmp_path: Path) -> Any:
    """Sections of a model that int8 breaks: one channel of every hidden layer is 20,000 times the others."""
    from fusion_nets import trained

    model, factor = trained(), 2e4

    def scale(first: torch.nn.Module, second: torch.nn.Module, columns: int = 1) -> None:
        first.weight[0] *= factor
        first.bias[0] *= factor
        second.weight[:, :columns] /= factor

    with torch.no_grad():
        scale(model.image[1], model.image[3])
        scale(model.audio[0], model.audio[2])
        scale(model.head[0], model.head[2])
    torch.save(model.state_dict(), tmp_path / "outlier.pt")
    return {
        "model": {"path": tmp_path / "outlier.pt", "factory": "fusion_nets:ImageAudio"},
        "quantize": {"precision": "auto", "calibrator": "minmax"},
        "evaluate": {"max_drop": 0.0, "metric": "cosine"},
        "data": data,
        "layout": "staged",
        "engine": "onnxruntime",
    }


def test_model_that_int8_breaks_stays_float_with_the_reason(
    outlier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integers_take(monkeypatch, 0.5)
    _, refused = shipped_and_refused(convert(outlier, tmp_path / "out.edgemm"))
    assert refused["refused"].startswith("no plan keeps the budget of 0 on 36 search samples")
    assert "the closest drops by" in refused["refused"]
    assert refused["decisions"].get("int8", 0) == 0


@pytest.mark.slow
def test_demanded_int8_that_breaks_the_model_is_an_error(outlier: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        QuantizationError, match=r"int8 was demanded and cannot ship: no plan keeps the budget"
    ) as caught:
        convert(outlier | {"quantize": {"precision": "int8", "calibrator": "minmax"}}, tmp_path / "out.edgemm")
    assert "--precision auto" in caught.value.hint
    assert sorted(tmp_path.iterdir()) == before


def test_auto_ships_float_where_int8_is_slower(convert_onnx: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    integers_take(monkeypatch, 2.0)
    _, refused = shipped_and_refused(convert_onnx(quantize={"precision": "auto"}))
    assert "nothing stays int8" in refused["refused"]


def test_int8_without_data_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"precision is int8 but data.calib is missing") as caught:
        convert({"model": {"path": "no-such.onnx"}, "quantize": {"precision": "int8"}}, tmp_path / "x.edgemm")
    assert "--calib" in caught.value.hint


def test_without_data_everything_stays_float_with_a_note(convert_onnx: Convert) -> None:
    report = convert_onnx(data={}, quantize={"precision": "auto"}).to_json()
    assert [v["name"] for v in report["variants"]] == ["cpu-fp32"]
    assert report["variants"][0]["accuracy"] is None
    assert "no calibration samples (--calib): nothing becomes integer" in report["notes"]
    assert len(report["notes"]) == len(set(report["notes"]))
    assert report["data"] == {"calibration": None, "search": None, "evaluation": None}


# -- layouts ----------------------------------------------------------------------------------------------------


def test_layouts_give_the_same_outputs(convert_onnx: Convert, evaluation: Arrays) -> None:
    results = {name: convert_onnx(f"{name}.edgemm", layout=name) for name in ("staged", "whole", "auto")}
    values = {name: outputs(r.path, evaluation) for name, r in results.items()}
    np.testing.assert_allclose(values["staged"], values["whole"], atol=1e-5)
    np.testing.assert_allclose(values["auto"], values["whole"], atol=1e-5)
    assert [e.name for e in results["staged"].shipped.engines] == ["image", "audio", "fusion"]
    (engine,) = results["whole"].shipped.engines
    assert engine.stages == ("image", "audio", "fusion")
    assert results["auto"].shipped.layout in {"staged", "whole"}
    assert results["auto"].to_json()["variants"][0]["latency"]["ratio"] > 0


def test_int8_whole_and_staged_decide_alike(convert_onnx: Convert, evaluation: Arrays) -> None:
    options = {"quantize": {"precision": "int8"}, "evaluate": {"max_drop": 0.05}}
    whole, staged = (convert_onnx(f"{name}.edgemm", layout=name, **options) for name in ("whole", "staged"))
    assert whole.shipped.decisions["int8"] == staged.shipped.decisions["int8"] > 0
    difference = np.abs(outputs(whole.path, evaluation) - outputs(staged.path, evaluation))
    assert difference.max() < 0.1 * np.abs(outputs(staged.path, evaluation)).max()
