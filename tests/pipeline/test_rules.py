"""`quantize.rules`: what people decide about nodes by hand, held by plans, searches and what ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgemm.errors import QuantizationError, RecipeError
from edgemm.partition import partition
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.exporting import export
from edgemm.pipeline.progress import Clock, Silent
from edgemm.quant.plan import Decision, QuantPlan
from edgemm.quant.ruled import find_ruled
from edgemm.recipe import build_recipe
from edgemm.rewrite.pipeline import rewrite

Convert = Callable[..., ConvertResult]
BUDGET = {"max_drop": 0.05}
ORIN = "jetson-orin-nano"


def rule(precision: str, **match: str) -> dict[str, Any]:
    return {"match": match, "precision": precision}


def decisions(result: ConvertResult) -> tuple[Decision, ...]:
    plan = (result.path / "plans" / f"{result.shipped.name}.json").read_text()
    return QuantPlan.from_json(json.loads(plan)).decisions


def quantizers(result: ConvertResult, engine: str) -> int:
    (file,) = [e.file for e in result.shipped.engines if e.name == engine]
    return sum("Quantize" in node.op_type for node in ir.load(result.path / file).graph)


def test_a_float_rule_keeps_a_stage_float_where_int8_is_demanded(convert_onnx: Convert) -> None:
    rules = [rule("int8", stage="image", op="Conv"), rule("float", modality="audio")]
    result = convert_onnx(quantize={"precision": "int8", "rules": rules}, evaluate=BUDGET, layout="staged")
    ruled = {(d.precision, d.rule, d.reason) for d in decisions(result) if d.stage == "audio"}
    assert ruled == {("fp32", "recipe", "quantize.rules.1: modality audio")}
    assert quantizers(result, "audio") == 0
    assert quantizers(result, "image") > 0
    searched = json.loads((result.path / "report" / "search.json").read_text())["groups"]
    assert searched
    assert "audio" not in {group["stage"] for group in searched}


@pytest.mark.parametrize("precision", ["int8", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_last_rule_counts_and_integers_by_rule_are_kept(convert_onnx: Convert, precision: str) -> None:
    rules = [rule("float", node="*"), rule("int8", stage="image", op="Conv")]
    result = convert_onnx(quantize={"precision": precision, "rules": rules}, evaluate=BUDGET, layout="staged")
    integers = [d for d in decisions(result) if d.precision != "fp32"]
    assert {(d.stage, d.op, d.precision) for d in integers} == {("image", "Conv", "int8")}
    assert {d.reason for d in integers} == {"quantize.rules.1: stage image, op Conv"}
    assert quantizers(result, "image") > 0
    assert quantizers(result, "fusion") == 0


@pytest.mark.parametrize(
    ("rules", "message", "hint"),
    [
        (
            [rule("float", modality="adio")],
            r"rules.0: no modality matches 'adio' \(modalities: image, audio\)",
            "'audio'",
        ),
        (
            [rule("float", op="Conv"), rule("float", stage="image", op="Cnv")],
            "rules.1: no op matches 'Cnv' in image",
            "Conv",
        ),
        ([rule("float", node="qq_*")], r"rules.0: no node matches 'qq_\*'", "edgemm plan"),
        (
            [rule("float", stage="fusion", modality="audio")],
            "no node has stage 'fusion' and modality 'audio' at once",
            "plan",
        ),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(
    convert_onnx: Convert, rules: list[dict[str, Any]], message: str, hint: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        convert_onnx(quantize={"precision": "fp32", "rules": rules})
    assert hint in caught.value.hint


def test_integers_that_no_matched_node_can_have_are_an_error(convert_onnx: Convert) -> None:
    with pytest.raises(QuantizationError, match=r"rules.0: none of the \d+ nodes that it matches can be int8"):
        convert_onnx(quantize={"rules": [rule("int8", op="Relu")]}, evaluate=BUDGET)


def test_a_module_is_matched_with_all_that_is_in_it(model_onnx: Path, tmp_path: Path) -> None:
    recipe = build_recipe({"model": {"path": model_onnx}}, where="r.yaml")
    graph, _ = rewrite(export(recipe, None, tmp_path, Silent(), Clock()).graph)
    stages = partition(graph)

    def matched(module: str) -> set[tuple[str, str]]:
        rules = build_recipe(
            {"model": {"path": "m.onnx"}, "quantize": {"rules": [rule("float", module=module)]}}, where="r.yaml"
        ).quantize.rules
        return set(find_ruled(rules, stages).rulings)

    gemms = {(s.name, str(n.name)) for s in stages.stages for n in s.model.graph if n.op_type == "Gemm"}
    assert matched("head") & gemms == {(s, n) for s, n in gemms if s == "fusion"}
    assert matched("head.0") < matched("head")
    assert {stage for stage, _ in matched("audio*")} == {"audio"}
    with pytest.raises(RecipeError, match=r"no module matches 'hed' \(modules: image, image") as caught:
        matched("hed")
    assert caught.value.hint == "did you mean 'head'?"


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        (ORIN, "int8", "rules.0: int8 is for CPU targets, not for 'jetson-orin-nano'"),
        ("cpu", "fp16", "rules.0: fp16 is for NVIDIA targets, not for 'cpu'"),
    ],
)
def test_a_rule_that_a_target_cannot_follow_is_refused(
    tmp_path: Path, target: str, precision: str, message: str
) -> None:
    sections = {"model": {"path": "m.onnx"}, "data": {"calib": "c.npz"}, "target": target}
    with pytest.raises(RecipeError, match=message):
        convert(sections | {"quantize": {"rules": [rule(precision, op="Conv")]}}, tmp_path / "out.edgemm")


def test_rules_hold_in_plans_for_tensorrt(convert_onnx: Convert) -> None:
    rules = [rule("float", modality="audio"), rule("fp16", modality="image")]
    quantize = {"calibrator": "minmax", "search_seconds": 0, "rules": rules}
    result = convert_onnx(quantize=quantize, evaluate=BUDGET, target=ORIN, layout="staged")
    found = {stage: {d.precision for d in decisions(result) if d.stage == stage} for stage in ("image", "audio")}
    assert found == {"image": {"fp16"}, "audio": {"fp32"}}
    assert "quantize.rules.0: modality audio" in {d.reason for d in decisions(result)}


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ({"rules": [rule("int8", op="Conv")], "precision": "fp32"}, "int8 contradicts precision fp32"),
        ({"rules": [rule("float", op="Conv")], "plan": "p.json"}, "a saved plan has decided about every node"),
        (
            {"rules": [{"match": {}, "precision": "float"}]},
            "give stage, modality, op, node or module",
        ),
        ({"rules": [rule("int3", op="Conv")]}, r"rules\.0\.precision: got 'int3'"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(quantize: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe({"model": {"path": "m.onnx"}, "data": {"calib": "c"}, "quantize": quantize}, where="r.yaml")
