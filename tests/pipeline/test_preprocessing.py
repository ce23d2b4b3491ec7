"""Conversions with preprocessing, as a part of the graph and on the host: a bundle that takes raw images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.bundle import read_manifest
from edgemm.errors import DataError, RecipeError
from edgemm.pipeline import ConvertResult, convert
from edgemm.preprocess import parse, run
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
    return convert(recipe(trained_folder, raw, bake=True), output)


@pytest.fixture(scope="module")
def hosted(trained_folder: Path, raw: Sections, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    output = tmp_path_factory.mktemp("hosted") / "hosted.edgemm"
    return convert(recipe(trained_folder, raw, bake=False), output)


@pytest.mark.parametrize("kind", ["baked", "hosted"])
def test_takes_raw_images(
    kind: str, request: pytest.FixtureRequest, fp32: ConvertResult, raw: Sections
) -> None:
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
