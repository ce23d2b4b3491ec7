"""Conversions with preprocessing, as a part of the graph and on the host: a bundle that takes raw images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import onnx_graph, run_whole

from edgemm.bundle import read_manifest
from edgemm.compare import ParityReport
from edgemm.errors import DataError, RecipeError
from edgemm.export.request import DynamicDim, DynamicReport, ExportResult
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.preprocessing import bake_preprocessing, read_preprocessing
from edgemm.pipeline.progress import Silent
from edgemm.preprocess import parse, run
from edgemm.recipe import Recipe
from edgemm.runtime import open_session

Sections = dict[str, Any]

LEVELS = 40.0
"""uint8 levels for 1.0 of the images that the model was trained on."""

STEPS: list[Any] = [
    {"resize": {"size": [16, 16]}},
    "grayscale",
    {"to_chw": {"scale": 1.0}},
    {"normalize": {"mean": [100], "std": [LEVELS]}},
]


def raw_images(images: np.ndarray) -> np.ndarray:
    """Returns uint8 RGB images of 32 x 48 of float images [N, 1, 16, 16]."""
    levels = np.clip(np.rint(images[:, 0] * LEVELS + 100), 0, 255).astype(np.uint8)
    return np.repeat(levels.repeat(2, axis=1).repeat(3, axis=2)[..., None], 3, axis=3)


@pytest.fixture(scope="module")
def raw(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sections:
    """The `data` section with raw images in the place of the prepared ones."""
    folder = tmp_path_factory.mktemp("raw")
    for name in ("calib", "eval"):
        with np.load(trained_folder / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", **(dict(arrays) | {"image": raw_images(arrays["image"])}))
    return {"calib": str(folder / "calib.npz"), "eval": str(folder / "eval.npz"), "label": "label"}


def recipe(trained_folder: Path, data: Sections, precision: str = "fp32", **image: Any) -> Sections:
    return {
        "model": {"path": trained_folder / "model.pt2"},
        "data": data,
        "inputs": {"image": {"preprocess": STEPS, **image}},
        "quantize": {"precision": precision, "search_seconds": 1},
        "engine": "onnxruntime",
    }


@pytest.fixture(scope="module")
def baked(trained_folder: Path, raw: Sections, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    output = tmp_path_factory.mktemp("baked") / "baked.edgemm"
    return convert(recipe(trained_folder, raw, bake=True) | {"layout": "staged"}, output)


@pytest.fixture(scope="module")
def hosted(trained_folder: Path, raw: Sections, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    output = tmp_path_factory.mktemp("hosted") / "hosted.edgemm"
    return convert(recipe(trained_folder, raw, bake=False) | {"layout": "whole"}, output)


@pytest.mark.parametrize("kind", ["baked", pytest.param("hosted", marks=pytest.mark.slow)])
def test_takes_raw_images(kind: str, request: pytest.FixtureRequest, fp32: ConvertResult, raw: Sections) -> None:
    bundle = request.getfixturevalue(kind).path
    with np.load(raw["eval"]) as arrays:
        images, audio = arrays["image"][:32], arrays["audio"][:32]
    prepared = run(parse(STEPS), images)
    with open_session(fp32.path) as plain, open_session(bundle) as session:
        image = session.io.input("image")
        assert (image.dtype, image.shape) == ("uint8", ("batch", 32, 48, 3))
        want = plain.run({"image": prepared, "audio": audio})
        got = session.run({"image": images, "audio": audio})
        with session.stream() as stream:
            stream.push("image", images[0])
            stream.push("audio", audio[0])
            streamed = stream.infer().outputs
        with pytest.raises(DataError, match="uint8"):
            session.run({"image": prepared, "audio": audio})
    np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(streamed["logits"], want["logits"][:1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_bundle_tells(baked: ConvertResult, hosted: ConvertResult) -> None:
    for result, by in ((baked, "graph"), (hosted, "host")):
        manifest = read_manifest(result.path)
        told = manifest.info["preprocess"]["image"]
        assert told["by"] == by
        assert told["way"].startswith(
            "image[batch,32,48,3] uint8 -> resize -> grayscale -> to_chw -> normalize -> "
        )
        assert len(manifest.preprocess) == (by == "host")


@pytest.mark.slow
def test_blank_is_a_dark_image(baked: ConvertResult, hosted: ConvertResult, raw: Sections) -> None:
    """A silent camera gives zeros: raw zeros, or what the steps make of them."""
    with np.load(raw["eval"]) as arrays:
        audio = arrays["audio"][0]
    answers = []
    for result in (baked, hosted):
        with open_session(result.path) as session:
            dark = session.run({"image": np.zeros((1, 32, 48, 3), np.uint8), "audio": audio[None]})
            with session.stream(optional={"image": "blank"}) as stream:
                stream.push("audio", audio)
                answers.append(stream.infer().outputs["logits"])
        np.testing.assert_allclose(answers[-1], dark["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_takes_the_place_of_another(hosted: ConvertResult, baked: ConvertResult, raw: Sections) -> None:
    with np.load(raw["eval"]) as arrays:
        feed = {"image": arrays["image"][:2], "audio": arrays["audio"][:2]}
    with open_session(hosted.path) as session:
        before = session.run(feed)["logits"]
        for other in (baked.path, hosted.path):
            session.swap(other)
            np.testing.assert_allclose(session.run(feed)["logits"], before, rtol=1e-4, atol=1e-4)


def test_says_before_any_work_what_does_not_fit(trained_folder: Path, raw: Sections, tmp_path: Path) -> None:
    def fails(**image: Any) -> Exception:
        with pytest.raises((DataError, RecipeError)) as caught:
            convert(recipe(trained_folder, raw, **image), tmp_path / "x.edgemm")
        return caught.value

    assert "the step 'center_crop' got uint8 [batch, 32, 48, 3], expected images of 40 x 40 or more" in str(
        fails(preprocess=[{"center_crop": {"size": [40, 40]}}])
    )
    small = fails(preprocess=[{"resize": {"size": [15, 16]}}, "grayscale", "to_chw"])
    assert "input 'image', axis 2: the data has the size 15, the model was saved for 16" in str(small)
    assert "image[batch,32,48,3] uint8 -> resize -> grayscale -> to_chw" in small.hint  # type: ignore[attr-defined]
    wrong = str(fails(raw={"dtype": "uint8", "shape": [32, 32, 3]}))
    assert "row 0: raw array 'image' is uint8 [32, 48, 3], expected uint8 [32, 32, 3]" in wrong
    unknown = fails(source="camera")
    assert "no samples show what the raw array 'camera' is" in str(unknown)
    assert "did you mean 'resize'" in fails(preprocess=["resiz"]).hint  # type: ignore[attr-defined]


@pytest.mark.slow
def test_integers_keep_the_steps_in_float(trained_folder: Path, raw: Sections, tmp_path: Path) -> None:
    result = convert(recipe(trained_folder, raw, "int8"), tmp_path / "int8.edgemm")
    variant = next(v for v in result.manifest.shipped if v.precision == "int8")  # maybe one in stages, too
    assert variant.accuracy is not None
    assert variant.accuracy["drop"] <= 0.01
    assert result.manifest.info["preprocess"]["image"]["by"] == "graph"  # where every step can be


def exported(opset: int, batch: str | int) -> ExportResult:
    """Returns the export of a mean over an image, with that batch."""
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    text = f"g (float[{batch},1,16,16] image) => (float[{batch},1,1,1] out) {{ out = GlobalAveragePool (image) }}"
    graph = onnx_graph(f"{head} {text}")
    dynamic = (DynamicDim("image", 0, "batch", (1, 2)),) if batch == "batch" else ()
    graph = replace(graph, io=replace(graph.io, batch=batch))
    return ExportResult(graph, DynamicReport(dynamic, ()), ParityReport(), ())


def image_recipe(**image: Any) -> Recipe:
    raw = {"dtype": "uint8", "shape": [32, 48, 3]}
    inputs = {"image": {"preprocess": STEPS, "raw": raw, **image}}
    return Recipe.model_validate({"model": {"path": "model.onnx"}, "inputs": inputs})


def test_an_old_graph_leaves_the_steps_to_the_host() -> None:
    found = read_preprocessing(image_recipe(), None)
    assert [way.input for way in found.baked] == ["image"]
    made, now = bake_preprocessing(exported(17, "batch"), found, None, Silent())
    assert [way.input for way in now.host] == ["image"]
    assert str(made.graph.io.inputs[0]) == "image[batch,1,16,16] float32"
    assert "the graph has opset 17, baked steps need 18" in now.notes[0]
    with pytest.raises(RecipeError, match="opset 17"):
        bake_preprocessing(
            exported(17, "batch"), read_preprocessing(image_recipe(bake=True), None), None, Silent()
        )


def test_steps_take_the_batch_of_the_model() -> None:
    recipe = image_recipe(source="camera")
    made, now = bake_preprocessing(exported(18, 4), read_preprocessing(recipe, None), None, Silent())
    assert str(made.graph.io.inputs[0]) == "camera[4,32,48,3] uint8"
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    want = run(parse(STEPS), images).mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(run_whole(made.graph, {"camera": images})["out"], want, rtol=1e-5)
    assert now.resolved(recipe, None, Path()).inputs["camera"].blank == "zeros"


def test_what_is_said_of_open_sizes_is_of_the_raw_array() -> None:
    recipe = image_recipe(source="camera")
    made, _ = bake_preprocessing(exported(18, "batch"), read_preprocessing(recipe, None), None, Silent())
    assert [(d.tensor, d.axis, d.symbol) for d in made.dynamic.dynamic] == [("camera", 0, "batch")]
