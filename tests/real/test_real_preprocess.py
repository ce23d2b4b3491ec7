"""av_digits with a camera of another size in front of it: raw images in, the same answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from real_models import edgemm

from edgemm.preprocess import parse, run
from edgemm.runtime import open_session

pytestmark = pytest.mark.slow

LEVELS, ZERO = 30.0, 110.0
STEPS: list[Any] = [
    "bgr_to_rgb",
    {"resize": {"size": [28, 28]}},
    "grayscale",
    {"to_chw": {"scale": 1.0}},
    {"normalize": {"mean": [ZERO], "std": [LEVELS]}},
]


def camera(images: np.ndarray) -> np.ndarray:
    """Returns uint8 BGR `[N, 84, 112, 3]` of float images `[N, 1, 28, 28]`."""
    levels = np.clip(np.rint(images[:, 0] * LEVELS + ZERO), 0, 255).astype(np.uint8)
    return np.repeat(levels.repeat(3, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw-calib.npz and raw-eval.npz as a camera gives them; calib.npz and eval.npz, prepared by the reference."""
    from benchmarks.fixtures import build

    build("av_digits")
    folder = tmp_path_factory.mktemp("camera")
    for name in ("calib", "eval"):
        with np.load(fixture() / f"{name}.npz") as arrays:
            raw = dict(arrays) | {"image": camera(arrays["image"])}
        np.savez(folder / f"raw-{name}.npz", **raw)
        np.savez(folder / f"{name}.npz", **(raw | {"image": run(parse(STEPS), raw["image"])}))
    return folder


def fixture() -> Path:
    from recipes.datasets.cache import cache_root

    return cache_root() / "fixtures" / "av_digits"


def converted(folder: Path, name: str, precision: str, raw: bool, **image: Any) -> Path:
    data = "raw-" if raw else ""
    recipe = {
        "model": {"path": str(fixture() / "model.pt2")},
        "inputs": {"image": image} if image else {},
        "data": {"calib": f"{data}calib.npz", "eval": f"{data}eval.npz", "label": "label"},
        "quantize": {"precision": precision, "search_seconds": 10},
        "engine": "onnxruntime",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    bundle = folder / f"{name}.edgemm"
    done = edgemm("convert", str(folder / f"{name}.yaml"), "-o", str(bundle), "--json")
    assert done.returncode == 0, done.stderr
    return bundle


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """The bundle that takes prepared images."""
    return converted(folder, "plain", "fp32", raw=False)


def test_answers_are_those_of_prepared_images(folder: Path, plain: Path) -> None:
    bundle = converted(folder, "raw", "fp32", raw=True, preprocess=STEPS, bake=True)
    with np.load(folder / "raw-eval.npz") as raw, np.load(folder / "eval.npz") as prepared:
        feed = {"image": raw["image"], "audio": raw["audio"]}
        want_feed = {"image": prepared["image"], "audio": prepared["audio"]}
        label = raw["label"]
    with open_session(plain) as one, open_session(bundle) as other:
        want, got = one.run(want_feed), other.run(feed)
    (name,) = want
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-4)
    assert (got[name].argmax(1) == label).mean() > 0.9
