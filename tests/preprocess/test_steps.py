"""Steps as recipes write them and bundles keep them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from edgemm.bake.registry import EMITTERS, emitter
from edgemm.errors import BundleError, RecipeError
from edgemm.preprocess import STEPS, parse, to_json
from edgemm.preprocess.front import InputSteps, fitted, named, renamed
from edgemm.preprocess.image import Resize
from edgemm.preprocess.registry import _convert, step_class
from edgemm.preprocess.step import name_of
from edgemm.tensors import BATCH, IOSpec, TensorSpec

IO = IOSpec(
    (TensorSpec("ids", "int64", (BATCH, "seq")), TensorSpec("image", "float32", (BATCH, 3, 8, "w"))),
    (TensorSpec("out", "float32", (BATCH, "w")),),
    {"ids": "text", "image": "image"},
    reasons={"image": "declared"},
)
RAW = TensorSpec("camera", "uint8", (BATCH, 20, 30, 3))


@pytest.mark.parametrize("name", STEPS)
def test_every_row_names_its_class(name: str) -> None:
    cls: Any = step_class(name)
    assert name_of(object.__new__(cls)) == name
    assert cls.__doc__
    assert cls.__dataclass_params__.frozen
    assert hasattr(cls, "__slots__")


@pytest.mark.parametrize("name", EMITTERS)
def test_every_emitter_is_of_a_step(name: str) -> None:
    assert name in STEPS
    assert callable(emitter(name))


def test_round_trip() -> None:
    steps = parse(["bgr_to_rgb", {"resize": {"size": [4, 5]}}, {"normalize": {"mean": [1], "std": [2, 3]}}])
    assert parse(to_json(steps)) == steps
    assert to_json(steps)[1] == {"resize": {"size": [4, 5], "shorter": None, "antialias": True}}


@pytest.mark.parametrize(
    ("items", "message", "hint"),
    [
        ([{"resise": {"size": [4, 4]}}], "there is no step 'resise'", "did you mean 'resize'"),
        ([{"resize": {"sise": [4, 4]}}], "there is no option 'sise'", "did you mean 'size'"),
        ([{"resize": {"size": [4]}}], r"size is \[4\], expected \[an integer, an integer\]", "docs"),
        ([{"resize": {"size": [4, 4.5]}}], r"expected an integer", "docs"),
        ([{"resize": {"size": [4, 4], "antialias": 1}}], "expected true or false", "docs"),
        ([{"resize": [4, 4]}], r"expected \{option: value\}", "docs"),
        ([{"crop": None}], "the option 'box' is missing", "docs"),
        ([{"resize": {}, "crop": {}}], "expected one step", "docs"),
        ("resize", "expected a list of steps", "docs"),
        ([3], "expected one step", "docs"),
    ],
)
def test_says_what_is_wrong(items: object, message: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse(items)
    assert hint in caught.value.hint


def audio_io(*shape: int | str) -> IOSpec:
    return IOSpec((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),), {"x": "audio"})


def test_sizes_that_come_through_the_steps_have_the_name_that_the_model_has_for_them() -> None:
    io, steps = audio_io("batch", 3, "time"), parse(["transpose"])
    (way,) = named(io, [InputSteps("x", TensorSpec("watch", "float32", ("batch", "watch_1", 3)), steps)])
    assert way.raw.shape == ("batch", "time", 3)
    assert way.made.shape == ("batch", 3, "time")
    (own,) = named(io, [InputSteps("x", TensorSpec("watch", "float32", ("batch", "ticks", 3)), steps)])
    assert own.raw.shape == ("batch", "ticks", 3)
    assert renamed(io, [own]).outputs[0].shape == ("batch", 3, "ticks")  # one name for one size


def test_sizes_that_the_steps_make_are_called_as_in_the_model() -> None:
    steps = parse([{"log_mel": {"rate": 16000, "bands": 8, "fft": 400, "hop": 160}}])
    io = audio_io("batch", 8, "x_dim2")
    (way,) = named(io, [InputSteps("x", TensorSpec("x", "float32", ("batch", "x_1")), steps)])
    assert (way.raw.shape, way.made.shape) == (("batch", "x_1"), ("batch", 8, "x_dim2"))
    with pytest.raises(RecipeError, match="has a size 'x_dim2', and the model calls another size so"):
        fitted(io, [InputSteps("x", TensorSpec("x", "float32", ("batch", "x_dim2")), steps)])


def test_options_follow_their_annotations() -> None:
    @dataclass
    class Options:
        a: Literal["one", "two"]
        b: tuple[float, ...]
        c: Path | None

    assert [f.name for f in fields(Options)] == ["a", "b", "c"]
    assert _convert("one", Literal["one", "two"], "a", None) == "one"
    assert _convert([1, 2.5], tuple[float, ...], "b", None) == (1.0, 2.5)
    assert _convert("x.json", Path | None, "c", Path("/in")) == Path("/in/x.json")
    assert _convert(None, Path | None, "c", Path("/in")) is None
    with pytest.raises(RecipeError, match="expected one or two") as caught:
        _convert("on", Literal["one", "two"], "a", None)
    assert "did you mean 'one'" in caught.value.hint
    with pytest.raises(RecipeError, match="expected a list of a number"):
        _convert("1, 2", tuple[float, ...], "b", None)


def test_raw_arrays_take_the_place_of_inputs() -> None:
    way = InputSteps("image", RAW, parse([{"resize": {"size": [8, 9]}}, "to_chw"]))
    io = renamed(IO, [way])
    assert [str(i) for i in io.inputs] == ["ids[batch,seq] int64", "camera[batch,20,30,3] uint8"]
    assert [str(o) for o in io.outputs] == ["out[batch,9] float32"]
    assert io.modalities == {"ids": "text", "camera": "image"}
    assert io.reasons == {"camera": "declared"}
    assert fitted(IO, [way]) == {"w": 9}
    assert InputSteps.from_json(way.to_json()) == way


def test_says_what_does_not_fit_the_model() -> None:
    way = InputSteps("image", RAW, parse([{"resize": {"size": [9, 9]}}, "to_chw"]))
    with pytest.raises(RecipeError, match=r"input 'image': preprocess gives float32 .*3, 9, 9.*3, 8, w") as caught:
        fitted(IO, [way])
    assert "resize -> to_chw" in caught.value.hint


def test_a_source_may_not_be_another_input() -> None:
    raw = TensorSpec("ids", "uint8", (BATCH, 20, 30, 3))
    way = InputSteps("image", raw, (Resize((8, 8)), *parse(["to_chw"])))
    with pytest.raises(RecipeError, match="'ids' is another input"):
        fitted(IO, [way])


def test_a_bundle_with_unknown_steps_needs_an_update() -> None:
    data = InputSteps("image", RAW, ()).to_json() | {"steps": [{"warp": {}}]}
    with pytest.raises(BundleError, match="there is no step 'warp'"):
        InputSteps.from_json(data)
    with pytest.raises(BundleError, match="malformed"):
        InputSteps.from_json({"input": "image"})
