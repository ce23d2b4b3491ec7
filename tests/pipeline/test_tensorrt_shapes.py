"""Names and sizes of dynamic dimensions for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import onnx_graph
from nvidia_models import CONVOLUTIONS, STRIDED, strided

from edgemm.backends.tensorrt import SizeRange
from edgemm.data import open_samples
from edgemm.errors import RecipeError
from edgemm.partition import partition
from edgemm.pipeline.shapes import Shapes, find_shapes
from edgemm.recipe import Recipe


def shapes(tmp_path: Path, profiles: dict[str, Any], *lengths: int, shape: list[Any] | None = None) -> Shapes:
    for number, length in enumerate(lengths):
        np.savez(tmp_path / f"{number}.npz", **strided(4, length))
    graph = onnx_graph(STRIDED, weights=CONVOLUTIONS)
    inputs = {} if shape is None else {"sound": {"shape": shape}}
    recipe = Recipe.model_validate({"model": {"path": "m.onnx"}, "inputs": inputs, "profiles": profiles})
    return find_shapes(recipe, partition(graph), graph.io, open_samples(str(tmp_path)) if lengths else None)


def test_one_size_in_every_sample_is_told(tmp_path: Path) -> None:
    found = shapes(tmp_path, {}, 48, 48)
    (note,) = found.notes()
    assert "'time' is 48 in every sample: engines will accept only 48" in note
    assert "--profile time=MIN:OPT:MAX" in note


@pytest.mark.parametrize("profiles", [{"time": [48, 48, 48]}, {}])
def test_sizes_that_differ_or_are_given_are_not_told(tmp_path: Path, profiles: dict[str, Any]) -> None:
    assert shapes(tmp_path, profiles, 32, 48).notes() == ()


def test_an_input_and_an_axis_name_a_dimension(tmp_path: Path) -> None:
    found = shapes(tmp_path, {"sound:2": [32, 48, 80]})
    assert found.ranges[0]["time"] == SizeRange(32, 48, 80)


def test_the_shape_of_an_input_has_ranges_and_profiles_win(tmp_path: Path) -> None:
    shape = ["batch", 3, {"steps": [32, 48, 80]}]
    assert shapes(tmp_path, {}, shape=shape).ranges[0]["time"] == SizeRange(32, 48, 80)
    assert shapes(tmp_path, {"time": [8, 8, 16]}, shape=shape).ranges[0]["time"] == SizeRange(8, 8, 16)
    assert str(shapes(tmp_path, {}, shape=shape)).endswith("(from the recipe)")
    with pytest.raises(RecipeError, match=r"inputs\.sound\.shape\.1: no dynamic dimension 'sound:1'"):
        shapes(tmp_path, {}, shape=["batch", {"channels": [1, 3, 3]}, "time"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tyme", "did you mean 'time'?"), ("sounds:2", "did you mean 'sound:2'?"), ("x", "`edgemm inspect MODEL`")],
)
def test_names_that_there_are_are_listed(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=r"\(dynamic: batch \(sound:0\), time \(sound:2\)\)") as caught:
        shapes(tmp_path, {name: [1, 1, 1]})
    assert hint in caught.value.hint
