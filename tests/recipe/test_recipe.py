"""Recipes: what is valid, what is refused, and where relative paths point."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from edgemm.errors import RecipeError
from edgemm.recipe import Recipe, build_recipe, load_recipe
from edgemm.recipe.fields import every_field, field_at, has_free_keys
from edgemm.recipe.loader import merge
from edgemm.recipe.overrides import overrides_of
from edgemm.runtime.stream_policy import StreamPolicy


def test_defaults_are_the_documented_ones() -> None:
    recipe = build_recipe({"model": {"path": "m.pt2"}}, where="options")
    assert recipe.quantize.precision == "auto"
    assert recipe.evaluate.max_drop == 0.01
    assert recipe.layout == "auto"


def test_every_field_has_a_description() -> None:
    def fields(section: type, path: str) -> list[str]:
        missing = []
        for name, field in section.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                missing += fields(inner, f"{path}{name}.")
            elif not field.description:
                missing.append(path + name)
        return missing

    assert fields(Recipe, "") == []


def test_unknown_field_names_the_closest() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml: quantize\.precison: there is no such field") as caught:
        build_recipe({"model": {"path": "m.pt2"}, "quantize": {"precison": "int8"}}, where="r.yaml")
    assert caught.value.hint == "did you mean 'precision'?"


def test_int8_without_data_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.calib is missing") as caught:
        build_recipe({"model": {"path": "m.pt2"}, "quantize": {"precision": "int8"}}, where="options")
    assert "--calib" in caught.value.hint


def test_negative_budget_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.max_drop"):
        build_recipe({"model": {"path": "m.pt2"}, "evaluate": {"max_drop": -1}}, where="options")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"evaluate": {"max_drop": float("inf")}}, r"evaluate\.max_drop: got inf, expected a finite number"),
        ({"evaluate": {"max_drop": float("nan")}}, r"evaluate\.max_drop: got nan, expected a "),
        (
            {"quantize": {"max_latency_ms": float("inf")}},
            r"quantize\.max_latency_ms: got inf, expected a finite number",
        ),
        ({"inputs": {"a": {"modality": ""}}}, r"inputs\.a\.modality: got '', expected at least 1 character"),
        ({"data": {"seed": True}}, r"data\.seed: got True, expected an integer"),
        (
            {"inputs": {"a": {"raw": {"dtype": "uit8"}}}},
            r"'uit8' is no dtype: use uint8, int16, float32 or str, for example\.",
        ),
        ({"inputs": {"a": {"dtype": "floot32"}}}, r"inputs\.a\.dtype: 'floot32' is no dtype: use uint8"),
    ],
)
def test_values_that_mean_nothing_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe({"model": {"path": "m.pt2"}} | section, where="options")


def _takes_floats(annotation: Any) -> bool:
    return annotation is float or any(map(_takes_floats, get_args(annotation)))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", [k.name for k in every_field() if _takes_floats(k.info.annotation)])
def test_no_number_is_infinite_or_none(name: str, value: float) -> None:
    """In words that say what to write: a search without an end, a parity that accepts all."""
    loc = tuple(name.split("."))
    info = field_at(loc)
    assert info is not None
    fields: Any = {"x": value} if has_free_keys(info.annotation) and name != "stream.window" else value
    for key in reversed(loc):
        fields = {key: fields}
    with pytest.raises(RecipeError, match=re.escape(f"r.yaml: {name}")) as caught:
        build_recipe({"model": {"path": "m.pt2"}} | fields, where="r.yaml")
    assert "finite number" in f"{caught.value.hint} {caught.value}" or "a number" in str(caught.value)


def test_what_has_no_end_is_answered_with_what_to_write() -> None:
    cases = (({"search_seconds": math.inf}, "the default is 60"), ({"max_latency_ms": math.inf}, "Leave it out"))
    for section, said in cases:
        with pytest.raises(RecipeError, match="expected a finite number") as caught:
            build_recipe({"model": {"path": "m.pt2"}, "quantize": section}, where="r.yaml")
        assert said in caught.value.hint


@pytest.mark.parametrize(
    ("steps", "message", "hint"),
    [
        (["resise"], "there is no step 'resise'", "did you mean 'resize'?"),
        (["warp"], "there is no step 'warp'", "steps: bgr_to_rgb, nv12_to_rgb, resize, "),
        ([{"to_chw": {"scael": 1}}], "to_chw: there is no option 'scael'", "did you mean 'scale'?"),
    ],
)
def test_a_wrong_step_is_answered_with_what_was_meant_first(steps: list[Any], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe({"model": {"path": "m.pt2"}, "inputs": {"a": {"preprocess": steps}}}, where="r.yaml")
    assert str(caught.value) == f"r.yaml: inputs.a.preprocess.0: preprocess: {message}."
    assert caught.value.hint.startswith(hint)


def test_numbers_of_blanks_and_steps_are_finite() -> None:
    for field, value in (
        ("blank", "constant:nan"),
        ("blank", "silence:inf"),
        ("preprocess", [{"normalize": {"mean": [float("nan")], "std": [1.0]}}]),
    ):
        with pytest.raises(RecipeError, match=rf"inputs\.a\.{field}(\.0)?: .*(nan|inf).*expected"):
            build_recipe({"model": {"path": "m.pt2"}, "inputs": {"a": {field: value}}}, where="r.yaml")


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {path: m.pt2, factory: 'net.py:build'}\n"
        "data: {calib: 'reader.py:Reader', eval: /abs/eval.npz}\n"
        "evaluate: {metric: 'score.py:f'}\n"
    )
    recipe = load_recipe(file)
    assert recipe.model.path == tmp_path / "m.pt2"
    assert recipe.model.factory == f"{tmp_path}/net.py:build"
    assert recipe.data.calib == f"{tmp_path}/reader.py:Reader"
    assert recipe.data.eval == "/abs/eval.npz"
    assert recipe.evaluate.metric == f"{tmp_path}/score.py:f"


def test_a_dotted_factory_stays_a_module(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: m.pt, factory: 'package.module:build'}\n")
    assert load_recipe(file).model.factory == "package.module:build"


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: m.pt2}\nevaluate: {metric: accuracy, max_drop: 0.5}\n")
    recipe = load_recipe(file, {"evaluate": {"max_drop": 0.1}})
    assert (recipe.evaluate.metric, recipe.evaluate.max_drop) == ("accuracy", 0.1)


def test_a_shape_may_have_ranges() -> None:
    shape = ["batch", {"frames": [10, 50, 300]}, 40]
    recipe = build_recipe({"model": {"path": "m.pt2"}, "inputs": {"x": {"shape": shape}}}, where="options")
    assert recipe.inputs["x"].sizes == ("batch", "frames", 40)
    assert recipe.ranges == ({"x:1": (10, 50, 300)},)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    steps = {"x": {"shape": shape, "preprocess": ["transpose"]}}
    with pytest.raises(RecipeError, match=r"inputs\.x: .* sizes that change are those of the raw data"):
        build_recipe({"model": {"path": "m.pt2"}, "inputs": steps}, where="options")


@pytest.mark.parametrize(
    "item", [{"frames": [10, 50]}, {"frames": 10}, {}, {"frames": [1, 2, 3], "bands": [1, 2, 3]}, [10, 50, 300]]
)
def test_what_is_no_range_of_a_shape_is_told(tmp_path: Path, item: Any) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"model: {{path: m.pt2}}\ninputs: {{x: {{shape: [batch, {json.dumps(item)}]}}}}\n")
    with pytest.raises(
        RecipeError, match=r"r\.yaml:2:\d+: inputs\.x\.shape: got .*, expected a size, a name, or {name"
    ):
        load_recipe(file)


def test_overrides_name_items_of_a_list_by_number(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    rules = "[{match: {op: Conv}, precision: float}, {match: {op: Gemm}, precision: float}]"
    file.write_text(f"model: {{path: m.pt2}}\ntarget: [cpu, rtx-ada]\nquantize: {{rules: {rules}}}\n")
    recipe = load_recipe(file, overrides_of(["quantize.rules.1.match.op=MatMul", "target.1=jetson-orin"]))
    assert [(r.match.op, r.precision) for r in recipe.quantize.rules] == [("Conv", "float"), ("MatMul", "float")]
    assert list(recipe.target) == ["cpu", "jetson-orin"]
    with pytest.raises(RecipeError, match=r"'rules' has no item 2: it has 2\.") as caught:
        load_recipe(file, overrides_of(["quantize.rules.2.precision=float"]))
    assert "item 0" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "got a list"),
        ("a: [\n", "no readable YAML"),
        ("model: 3\n", r"r\.yaml:1:8: model: got 3, expected a section of path, factory, allow_pickle"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(file)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    file, proof = tmp_path / "r.yaml", tmp_path / "ran"
    file.write_text(f"model: !!python/object/apply:os.system ['touch {proof}']\n")
    with pytest.raises(RecipeError, match="no readable YAML"):
        load_recipe(file)
    assert not proof.exists()


def test_merge_goes_into_sections() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {
        "a": {"b": 1, "c": 4},
        "d": 3,
        "e": 5,
    }


def test_blanks_are_read_and_their_files_are_the_recipes_own(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {path: m.pt2}\ninputs:\n  a: {blank: mean}\n  b: {blank: {silence: 1e-3}}\n"
        "  c: {blank: {file: quiet.npy}}\n  d: {}\n"
    )
    inputs = load_recipe(file).inputs
    assert [inputs[n].blank for n in "abcd"] == ["mean", "silence:1e-3", str(tmp_path / "quiet.npy"), None]


def test_a_blank_of_no_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"inputs.a.blank: blank: got 'quite', expected zeros, mean"):
        build_recipe({"model": {"path": "m.pt2"}, "inputs": {"a": {"blank": "quite"}}}, where="options")


def test_a_stream_policy_is_what_the_runtime_takes() -> None:
    sections = {
        "trigger": 30,
        "optional": {"audio": "constant:0.5", "image": "learned"},
        "window": 0.05,
        "max_age": {"audio": 0.5},
        "offset": {"image": -0.02},
        "timeout": 0.1,
        "queue": 4,
        "drop": "block",
        "reject_nan": False,
    }
    stream = build_recipe({"model": {"path": "m.pt2"}, "stream": sections}, where="r.yaml").stream
    assert stream.given() == sections
    assert set(type(stream).model_fields) == {f.name for f in dataclasses.fields(StreamPolicy)}
    assert build_recipe({"model": {"path": "m.pt2"}}, where="r.yaml").stream.given() == {}


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"trigger": 0}, r"stream\.trigger"),
        (
            {"optional": {"image": "zeros", "audio": "meen"}},
            r"stream\.optional\.audio: got 'meen', expected one of fail, last, zeros.*\nhint: did you mean 'mean'",
        ),
        ({"optional": {"audio": "constant:x"}}, r"optional\.audio: got .constant:x., expected constant:VALUE"),
        ({"window": float("inf")}, r"stream\.window"),
        ({"max_age": {"audio": -1}}, r"stream\.max_age"),
        ({"queue": 0}, r"stream\.queue"),
        ({"drop": "oldest"}, r"stream\.drop"),
        ({"patience": 1}, r"stream\.patience: there is no such field"),
    ],
)
def test_wrong_stream_policies_are_refused(stream: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_recipe({"model": {"path": "m.pt2"}, "stream": stream}, where="r.yaml")
