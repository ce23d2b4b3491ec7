"""Lines and columns, keys by name, files by place: what errors in recipes rest on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from edgemm.errors import RecipeError
from edgemm.recipe import Recipe, load_recipe
from edgemm.recipe.fields import every_field, fields_below, meant
from edgemm.recipe.loader import judge
from edgemm.recipe.overrides import overrides_of
from edgemm.recipe.paths import missing_files
from edgemm.recipe.source import Place, RecipeText, parse_text


def test_every_key_and_value_has_its_place() -> None:
    text = parse_text("model:\n  path: m.pt2\ntarget: [cpu,\n  rtx-ada]\n", "r.yaml")
    assert text.place(("model", "path")) == Place(2, 9)
    assert text.place(("model", "path"), key=True) == Place(2, 3)
    assert text.place(("target", 1)) == Place(4, 3)
    assert text.place(("model", "factory", "x")) == Place(1, 1)  # what is not there is named by its section


def test_a_loaded_recipe_names_the_line_of_the_first_problem(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {path: m.pt2}\nevaluate:\n  max_drop: lots\n  btch: 1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}:3:13: evaluate.max_drop: got 'lots', expected a number. (1 more; `edgemm recipe check` shows all)"
    )


def test_anchors_merges_and_loops_have_places() -> None:
    text = parse_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n", "r.yaml")
    assert text.fields == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    assert text.place(("c", "b"), key=True) == Place(1, 8)
    assert text.duplicates == ()
    loop = parse_text("a: &x [*x]\n", "r.yaml")
    assert loop.place(("a",)) == Place(1, 4)


def test_keys_that_are_given_twice_are_found_at_any_depth() -> None:
    text = parse_text("a:\n  - {b: 1, c: 2, b: 3}\n", "r.yaml")
    assert [(d.loc, d.first, d.again) for d in text.duplicates] == [(("a", 0, "b"), Place(2, 6), Place(2, 18))]


def test_a_value_of_an_option_has_no_line() -> None:
    text = parse_text("model: {path: m.pt2}\nevaluate: {max_drop: 0.1}\n", "r.yaml")
    _, (problem,) = judge(text, {"evaluate": {"max_drop": -1}})
    assert (problem.origin, problem.place) == ("options", None)


@pytest.mark.parametrize(
    ("loc", "hint"),
    [
        (("quantize", "precison"), "did you mean 'precision'?"),
        (("max_drop",), "did you mean 'evaluate.max_drop'?"),
        (("inputs", "image", "modalty"), "did you mean 'modality'?"),
        (("quantize", "rules", 0, "matches"), "did you mean 'match'?"),
        (("quantize", "rules", 0, "match", "opp"), "did you mean 'op'?"),
        (("export", "zzz"), "fields here: opset, absolute_tolerance, relative_tolerance"),
    ],
)
def test_the_closest_field_is_named(loc: tuple[str | int, ...], hint: str) -> None:
    assert meant(loc) == hint


def test_the_tree_of_fields_is_the_schema() -> None:
    names = {known.name for known in every_field()}
    assert {"model", "model.path", "inputs.NAME.shape", "quantize.rules.0.match.op", "target"} <= names
    assert all(known.info.description for known in every_field() if known.section is None)
    assert fields_below(("stream", "optional")) is None
    assert fields_below(()) == tuple(Recipe.model_fields)
    assert issubclass(Recipe, BaseModel)


def test_overrides_nest_and_the_last_wins() -> None:
    texts = ['inputs."past.0.key".modality=text', "evaluate.max_drop=1", "evaluate.max_drop=0.5", "data.label="]
    assert overrides_of(texts) == {
        "inputs": {"past.0.key": {"modality": "text"}},
        "evaluate": {"max_drop": 0.5},
        "data": {"label": None},
    }


@given(st.text(max_size=30))
def test_any_text_for_set_is_a_value_or_an_error(text: str) -> None:
    with suppress(RecipeError):
        overrides_of([text])


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_an_error(text: str) -> None:
    with suppress(RecipeError):
        found, problems = judge(parse_text(text, "r.yaml"))
        assert found is not None or problems


def test_files_that_are_not_there_are_named_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "calib.npz").touch()
    fields = {
        "model": {"path": "m.pt2", "factory": "pkg.mod:build"},
        "data": {"calib": "calip.npz", "eval": "reader.py:Reader"},
        "evaluate": {"metric": "accuracy"},
        "inputs": {"a": {"blank": {"file": "quiet.npy"}}, "b": {"blank": "mean"}},
    }
    found = missing_files(RecipeText("r.yaml", fields), tmp_path)
    assert [p.field for p in found] == ["model.path", "data.calib", "data.eval", "inputs.a.blank"]
    assert found[1].hint == "did you mean 'calib.npz'?"
