"""`edgemm profile` by the bundle's own recipe: what it takes from it, and what options still say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemm.bundle import read_manifest, write_bundle
from edgemm.errors import RecipeError
from edgemm.pipeline.rates import check_rates
from edgemm.recipe import build_recipe

Edgemm = Callable[..., Any]


@pytest.fixture
def with_recipe(fusion_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """The bundle of image and audio with sections in its recipe."""

    def make(**sections: Any) -> Path:
        manifest = read_manifest(fusion_bundle)
        files: dict[str, bytes | Path] = {name: (fusion_bundle / name).read_bytes() for name in manifest.files}
        files["recipe.json"] = json.dumps(sections).encode()
        write_bundle(tmp_path / "own.edgemm", replace(manifest, files={}), files, force=True)
        return tmp_path / "own.edgemm"

    return make


def test_runs_rates_and_budget_come_from_the_recipe(edgemm: Edgemm, with_recipe: Callable[..., Path]) -> None:
    bundle = with_recipe(
        profile={"runs": 12, "warmup": 3, "cached": ["image"], "budget": "p50<1us"},
        inputs={"image": {"rate": 200.0}, "audio": {"rate": 400.0}},
    )
    result = edgemm("profile", bundle, "--json")
    assert result.code == 2  # the budget is broken
    assert result.json["runs"] == 12
    assert result.json["budget"][0]["limit"] == "p50<1us"
    assert {mode["mode"] for mode in result.json["modes"]} == {"back-to-back", "paced", "cached"}
    said = next(line for line in result.err.splitlines() if line.startswith("by the bundle's recipe"))
    assert "runs 12" in said
    assert "rates image=200,audio=400" in said


def test_options_win_and_no_recipe_leaves_it_out(edgemm: Edgemm, with_recipe: Callable[..., Path]) -> None:
    bundle = with_recipe(profile={"seconds": 60.0, "rates": {}}, inputs={"image": {"rate": 0.01}})
    result = edgemm("profile", bundle, "--runs", 5, "--json")
    assert (result.code, result.json["runs"], result.err) == (0, 5, "")
    bundle = with_recipe(profile={"runs": 12, "budget": "p50<1us"})
    result = edgemm("profile", bundle, "--no-recipe", "--runs", 6, "--json")
    assert (result.code, result.json["runs"], result.err) == (0, 6, "")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"profile": {"rates": {"audoi": 10}}}, "profile.rates.audoi: there is no modality 'audoi'"),
        ({"profile": {"cached": ["imge"]}}, "profile.cached.0: there is no modality 'imge'"),
        (
            {"inputs": {"image": {"rate": 30}, "audio": {"rate": 10}}},
            "inputs.audio.rate: 10 Hz, and input 'image'",
        ),
    ],
)
def test_rates_of_no_modality_are_refused(fusion_bundle: Path, sections: dict[str, Any], message: str) -> None:
    io = read_manifest(fusion_bundle).io
    if "inputs" in sections:
        io = replace(io, modalities=dict.fromkeys(io.modalities, "both"))
    recipe = build_recipe({"model": {"path": "m.onnx"}} | sections, where="r.yaml")
    with pytest.raises(RecipeError, match=message):
        check_rates(recipe, io)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"runs": 5, "seconds": 1}, "runs and seconds: give one of them"),
        ({"budget": "p42<3ms"}, r"profile\.budget"),
        ({"rates": {"image": 0}}, r"profile\.rates\.image: got 0, expected a number greater than 0"),
    ],
)
def test_profile_sections_that_cannot_be_meant_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe({"model": {"path": "m.onnx"}, "profile": section}, where="r.yaml")
