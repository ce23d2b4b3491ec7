"""Conversions that demand fp8 or int4 for NVIDIA targets; no TensorRT is needed for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from nvidia_models import PRODUCTS, WIDE_PAIR, WIDE_PRODUCTS, rows, save

from edgemm.backends.targets import find_target
from edgemm.bundle import read_manifest, verify
from edgemm.errors import QuantizationError, RecipeError
from edgemm.lint import lint
from edgemm.pipeline import ConvertResult, convert
from edgemm.quant.plan import QuantPlan
from edgemm.runtime import open_session

ORIN, THOR = "jetson-orin-nano", "jetson-thor"
Made = Callable[..., ConvertResult]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Converts `WIDE_PAIR` in a precision for targets, with any sections."""

    def call(
        precision: str, target: str | list[str], *, calibrated: bool = True, **sections: Any
    ) -> ConvertResult:
        model = save(WIDE_PAIR, WIDE_PRODUCTS, tmp_path / "model.onnx")
        np.savez(tmp_path / "calib.npz", **rows(60, 3, width=128))
        given: dict[str, Any] = {"model": {"path": model}, "target": target, "evaluate": {"max_drop": 0.5}}
        if calibrated:
            given["data"] = {"calib": str(tmp_path / "calib.npz")}
        return convert(
            given | {"quantize": {"precision": precision}} | sections, tmp_path / "out.edgemm", force=True
        )

    return call


@pytest.mark.parametrize(
    ("precision", "target", "planned", "dtype", "limit"),
    [("fp8", THOR, "fp8", "FLOAT8E4M3FN", 0.45), ("int4", ORIN, "int4-weight", "INT4", 0.25)],
)
def test_what_is_demanded_is_in_the_bundle(
    made: Made, precision: str, target: str, planned: str, dtype: str, limit: float
) -> None:
    result = made(precision, target)
    verify(result.path, read_manifest(result.path))
    (variant,) = result.manifest.shipped
    assert (variant.name, variant.precision) == (f"{target}-{precision}", precision)
    assert variant.decisions[planned] == 2
    assert variant.accuracy is not None
    assert variant.accuracy["simulated"] is True
    assert variant.accuracy["drop"] <= 0.5
    plan = QuantPlan.from_json(json.loads((result.path / f"plans/{variant.name}.json").read_text()))
    chosen = [d for d in plan.decisions if d.precision == planned]
    assert {d.options["float"] for d in chosen} == {"fp16"}
    assert all(d.rule.startswith("matmul-") and d.reason for d in chosen)
    assert variant.size_bytes < limit * result.manifest.info["float_size_bytes"]
    for engine in variant.engines:
        graph = ir.load(result.path / engine.file)
        kinds = {str(v.dtype) for n in graph.graph for v in n.inputs if v is not None}
        assert (dtype in kinds) == (precision in engine.options["precisions"]) == (planned in engine.decisions)
        assert not [f for f in lint(graph, find_target(target)) if f.severity == "error"]
    feed = rows(6, 9, width=128)
    with open_session(result.path) as session:  # no GPU here: the same graphs on the CPU
        found = session.run(feed)["scores"]
    with open_session(made("fp32", target).path) as session:
        expected = session.run(feed)["scores"]
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    assert precision in result.precision_of(variant, "a") or planned in result.precision_of(variant, "a")


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("fp8", ORIN, r"precision fp8 does not exist on jetson-orin-nano \(SM 87\): it has fp32, tf32, fp16"),
        ("fp8", "rtx-ampere", r"precision fp8 does not exist on rtx-ampere \(SM 86\)"),
        ("fp8", [THOR, "rtx-turing"], r"precision fp8 does not exist on rtx-turing \(SM 75\)"),
        ("fp8", "cuda", "precision fp8 does not exist on cuda: it has"),
        ("int4", "rtx-turing", r"precision int4 does not exist on rtx-turing \(SM 75\)"),
        ("fp8", "cpu", "precision fp8 is for NVIDIA targets, not for 'cpu'"),
        ("int4", "cpu", "precision int4 is for NVIDIA targets, not for 'cpu'"),
    ],
)
def test_targets_that_lack_it_are_refused(made: Made, precision: str, target: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        made(precision, target)
    assert "--precision auto" in caught.value.hint
    if "does not exist" in message:
        assert THOR in caught.value.hint


def test_ranges_are_not_guessed_and_the_budget_holds(made: Made) -> None:
    for precision in ("fp8", "int4"):
        with pytest.raises(RecipeError, match=rf"precision is {precision} but data\.calib is missing"):
            made(precision, THOR, calibrated=False)
    with pytest.raises(QuantizationError, match=rf"int4 was demanded and cannot ship for {THOR}: .*drops by"):
        made("int4", THOR, evaluate={"max_drop": 0.0})


def test_nothing_that_int4_is_for(made: Made, tmp_path: Path) -> None:
    narrow = save(WIDE_PAIR.replace("128", "32"), PRODUCTS, tmp_path / "narrow.onnx")
    np.savez(tmp_path / "narrow.npz", **rows(60, 3))
    sections = {"model": {"path": narrow}, "data": {"calib": str(tmp_path / "narrow.npz")}}
    with pytest.raises(
        QuantizationError, match=r"nothing is int4: MatMul .*: 32 weights per column are no blocks"
    ):
        made("int4", ORIN, **sections)


def test_an_edited_plan_of_fp8_keeps_its_name(made: Made, tmp_path: Path) -> None:
    first = made("fp8", THOR)
    plan = json.loads((first.path / "plans" / f"{THOR}-fp8.json").read_text())
    edited = next(d for d in plan["decisions"] if d["precision"] == "fp8" and d["stage"] == "a")
    edited |= {"precision": "fp16", "options": {}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    second = made("auto", [THOR], quantize={"plan": str(path)})
    assert second.shipped.name == f"{THOR}-fp8"
    assert second.shipped.decisions["fp8"] == 1
    third = made("auto", ORIN, quantize={"plan": str(path)})
    assert third.shipped.name == f"{ORIN}-fp32"
    (refused,) = [v for v in third.manifest.variants if v.refused]
    assert refused.name == f"{ORIN}-fp8"
    assert "fp8 does not exist on SM 87" in str(refused.refused)
