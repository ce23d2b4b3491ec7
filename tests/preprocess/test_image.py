"""The steps for images against Pillow and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgemm.errors import DataError, RecipeError
from edgemm.preprocess import output_of, parse, run
from edgemm.preprocess.image import (
    BgrToRgb,
    CenterCrop,
    Crop,
    Grayscale,
    Normalize,
    Nv12ToRgb,
    Resize,
    Sobel,
    ToChw,
)
from edgemm.tensors import TensorSpec

NOISE = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8)
PHOTO = scipy.ndimage.uniform_filter(NOISE.astype(np.float64), (1, 5, 5, 1)).astype(np.uint8)
GRAY = NOISE[..., :1]


def pillow(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(i).resize(size[::-1], Image.Resampling.BILINEAR)) for i in images])


@pytest.mark.parametrize("size", [(28, 28), (45, 33), (30, 40), (60, 20), (7, 80), (120, 100)])
@pytest.mark.parametrize("images", [NOISE, PHOTO], ids=["noise", "smooth"])
def test_resize_is_pillows_but_for_the_last_bit(images: np.ndarray, size: tuple[int, int]) -> None:
    off = np.abs(Resize(size).apply(images).astype(int) - pillow(images, size))
    assert off.max() <= 1
    assert (off > 0).mean() < (0.01 if size[0] < 60 else 0.1)  # enlarged images have many ties


def test_resize_of_halves_is_pillows_exactly() -> None:
    np.testing.assert_array_equal(Resize((30, 40)).apply(NOISE), pillow(NOISE, (30, 40)))


def test_resize_without_antialias_takes_two_neighbours() -> None:
    row = np.array([0, 40, 80, 120, 160, 200], np.float32).reshape(1, 1, 6, 1)
    got = Resize((1, 2), antialias=False).apply(row)[0, 0, :, 0]
    np.testing.assert_allclose(got, [40, 160])  # the centers of [0, 3) and [3, 6)


def test_floats_are_not_rounded() -> None:
    images = NOISE.astype(np.float32) / 7
    got = Resize((28, 28)).apply(images)
    want = [
        np.asarray(Image.fromarray(images[0, ..., c]).resize((28, 28), Image.Resampling.BILINEAR))
        for c in range(3)
    ]
    np.testing.assert_allclose(got[0], np.stack(want, axis=-1), atol=1e-3)


@pytest.mark.parametrize(("height", "width", "want"), [(60, 80, (24, 32)), (80, 60, (32, 24)), (50, 50, (24, 24))])
def test_shorter_side(height: int, width: int, want: tuple[int, int]) -> None:
    spec = Resize(shorter=24).output(TensorSpec("image", "uint8", ("batch", height, width, 3)))
    assert spec.shape == ("batch", *want, 3)


def test_grayscale_is_pillows() -> None:
    want = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in NOISE])
    np.testing.assert_array_equal(Grayscale().apply(NOISE)[..., 0], want)


def test_crop_is_pillows() -> None:
    box = (3, 5, 40, 31)
    want = np.stack([np.asarray(Image.fromarray(i).crop(box)) for i in NOISE])
    np.testing.assert_array_equal(Crop(box).apply(NOISE), want)


def test_center_crop_keeps_the_middle() -> None:
    np.testing.assert_array_equal(CenterCrop((40, 50)).apply(NOISE), NOISE[:, 10:50, 15:65])


def test_sobel_is_scipys() -> None:
    image = GRAY[0, ..., 0].astype(np.float64)
    x, y = (scipy.ndimage.sobel(image, axis=a, mode="nearest") for a in (1, 0))
    np.testing.assert_allclose(Sobel().apply(GRAY)[0, ..., 0], np.hypot(x, y), rtol=1e-6)


def test_video_frames() -> None:
    """NV12 of BT.601 video: black, white, and the primaries within the rounding of 8 bits."""
    frames = {
        (16, 128, 128): (0, 0, 0),
        (235, 128, 128): (255, 255, 255),
        (81, 90, 240): (255, 0, 0),
        (145, 54, 34): (0, 255, 0),
        (41, 240, 110): (0, 0, 255),
    }
    for (y, cb, cr), color in frames.items():
        nv12 = np.concatenate([np.full((1, 4, 6), y), np.tile([cb, cr], (1, 2, 3))], axis=1).astype(np.uint8)
        got = Nv12ToRgb().apply(nv12)
        assert got.shape == (1, 4, 6, 3)
        assert np.abs(got.astype(int) - color).max() <= 1


def test_full_range_frames_are_those_of_jpeg() -> None:
    color = np.array([[[200, 30, 90]]], np.uint8).repeat(4, 0).repeat(6, 1)
    y, cb, cr = np.asarray(Image.fromarray(color).convert("YCbCr"))[0, 0]
    nv12 = np.concatenate([np.full((1, 4, 6), y), np.tile([cb, cr], (1, 2, 3))], axis=1).astype(np.uint8)
    assert np.abs(Nv12ToRgb(full_range=True).apply(nv12)[0].astype(int) - color).max() <= 1


def test_a_torchvision_pipeline() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = parse(["bgr_to_rgb", {"resize": {"shorter": 40}}, {"center_crop": {"size": [32, 32]}}, "to_chw",
                   {"normalize": {"mean": list(mean), "std": list(std)}}])  # fmt: skip
    got = run(steps, NOISE)
    resized = pillow(NOISE[..., ::-1], (40, 53))[:, 4:36, 10:42]
    want = (resized.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert got.dtype == np.float32
    assert np.abs(got - want).max() < 1.01 / 255 / min(std)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_every_size_keeps_one_color(height: int, width: int, tall: int, wide: int, antialias: bool) -> None:
    image = np.full((1, height, width, 1), 201, np.uint8)
    got = Resize((tall, wide), antialias=antialias).apply(image)
    assert got.shape == (1, tall, wide, 1)
    assert (got == 201).all()


STEPS = [
    BgrToRgb(),
    Resize((20, 30)),
    Resize(shorter=20),
    CenterCrop((20, 30)),
    Crop((1, 2, 30, 40)),
    Grayscale(),
    Sobel(),
    ToChw(),
    Normalize((1.0, 2.0, 3.0), (2.0,), axis=-1),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_comes_out_is_what_was_promised(step: object, dtype: type) -> None:
    images = NOISE.astype(dtype)
    before = images.copy()
    got = step.apply(images)  # type: ignore[attr-defined]
    spec = output_of([step], TensorSpec("image", np.dtype(dtype).name, ("batch", 60, 80, 3)))  # type: ignore[list-item]
    assert (got.dtype.name, got.shape) == (spec.dtype, (2, *spec.shape[1:]))
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(images, before)
    one = step.apply(images[1:])  # type: ignore[attr-defined]
    np.testing.assert_allclose(one, got[1:], rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "shape", "dtype", "message"),
    [
        (["to_chw", "grayscale"], ("batch", 8, 8, 3), "uint8", "the step 'grayscale' got float32"),
        (["grayscale"], ("batch", 8, 8, 4), "uint8", "expected uint8 or float32 images"),
        ([{"center_crop": {"size": [9, 4]}}], ("batch", 8, 8, 3), "uint8", "expected images of 9 x 4 or more"),
        ([{"crop": {"box": [0, 0, 9, 4]}}], ("batch", 8, "wide", 3), "uint8", "of known size"),
        ([{"resize": {"shorter": 4}}], ("batch", "high", 8, 3), "uint8", "known height and width"),
        (["nv12_to_rgb"], ("batch", 8, 8), "uint8", r"height \* 3 / 2"),
        (["to_chw", {"normalize": {"mean": [0, 0], "std": [1]}}], ("batch", 8, 8, 3), "uint8", "2 channels in"),
        (["bgr_to_rgb"], ("batch", 8, 8, 3), "int16", "input 'image': the step 'bgr_to_rgb' got int16"),
    ],
)
def test_refuses_what_does_not_fit(steps: list[object], shape: tuple[int, ...], dtype: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        output_of(parse(steps), TensorSpec("image", dtype, shape))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"resize": {}}, "one of `size` and `shorter`"),
        ({"resize": {"size": [4, 4], "shorter": 3}}, "one of `size` and `shorter`"),
        ({"resize": {"size": [0, 4]}}, "1 or more"),
        ({"crop": {"box": [5, 0, 5, 4]}}, "left < right"),
        ({"normalize": {"mean": [0], "std": [0]}}, "above 0"),
    ],
)
def test_refuses_options(step: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse([step])
