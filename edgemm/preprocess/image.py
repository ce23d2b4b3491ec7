"""Steps for images: `[batch, height, width, channels]` in uint8 as cameras and decoders give them.

Weights of resizing and of luminance are multiples of 2^-16. Products and sums of them with uint8 are exact in
float32, whatever computes them in whatever order, and so is what is rounded to uint8 again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgemm.preprocess.resampling import bands
from edgemm.preprocess.step import Step, expect, refuse
from edgemm.tensors import TensorSpec

Array = npt.NDArray[np.float32]

GRAY = np.array([19595, 38470, 7471], np.float32) / np.float32(65536)
"""Shares of red, green and blue in the luminance of ITU-R BT.601, as Pillow rounds them."""

NV12 = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""Full range YCbCr to RGB, JFIF 1.02: rows R, G, B over Y, Cb - 128, Cr - 128."""

NV12_VIDEO = ((1.164384, 0.0, 1.596027), (1.164384, -0.391762, -0.812968), (1.164384, 2.017232, 0.0))
"""The same for the range of video, Y from 16 to 235, ITU-R BT.601: over Y - 16, Cb - 128, Cr - 128."""


@dataclass(frozen=True, slots=True)
class BgrToRgb:
    """Reverses the order of three channels, as OpenCV gives them: BGR to RGB, or RGB to BGR."""

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the images `[B, H, W, 3]` with their channels the other way round."""
        return np.ascontiguousarray(batch[..., ::-1])

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what goes in.

        Raises:
            DataError: It is no image with three channels in its last axis.
        """
        return _image(self, spec, 3)


@dataclass(frozen=True, slots=True)
class Nv12ToRgb:
    """Makes RGB of NV12, what cameras and video decoders give: a plane of Y above one of Cb and Cr, half as large.

    Each pair of Cb and Cr is for four pixels (nearest neighbour).

    Attributes:
        full_range: Y goes from 0 to 255, as in JPEG; otherwise from 16 to 235, as in video.
    """

    full_range: bool = False

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns uint8 `[B, H, W, 3]` of uint8 `[B, H * 3 / 2, W]`."""
        height = batch.shape[1] * 2 // 3
        luma, chroma = batch[:, :height].astype(np.float32), batch[:, height:].astype(np.float32)
        chroma = chroma.reshape(*chroma.shape[:2], -1, 2) - np.float32(128)
        chroma = chroma.repeat(2, axis=1).repeat(2, axis=2)
        luma = luma - np.float32(0 if self.full_range else 16)
        planes = luma, chroma[..., 0], chroma[..., 1]
        rows = nv12_weights(self)
        channels = [sum((p * w for p, w in zip(planes, row, strict=True) if w), np.float32(0)) for row in rows]
        return rounded(np.stack(channels, axis=-1))

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns uint8 `[batch, height, width, 3]`.

        Raises:
            DataError: It is no uint8 `[batch, height * 3 / 2, width]` of even and known height and width.
        """
        rows, width = spec.shape[1:] if len(spec.shape) == 3 else ("", "")
        known = isinstance(rows, int) and isinstance(width, int) and rows % 3 == 0 and width % 2 == 0
        if spec.dtype != "uint8" or not known:
            expected = "uint8 [batch, height * 3 / 2, width], height and width even"
            raise refuse(self, spec, expected, "give `raw` the size of a frame: {dtype: uint8, shape: [720, 640]}")
        assert isinstance(rows, int)
        return replace(spec, shape=(spec.shape[0], rows * 2 // 3, width, 3))


@dataclass(frozen=True, slots=True)
class Resize:
    """Another size, by bilinear interpolation as Pillow's `Image.resize(..., BILINEAR)` has it.

    With `antialias` the triangle grows with the factor of shrinking, as in Pillow and torchvision; without it two
    neighbours count, as in OpenCV's `INTER_LINEAR`. Of uint8 images come uint8 images, rounded after each axis,
    width first, as in Pillow: weights are in 16 bits where Pillow has 22, so some pixels differ by 1.

    Attributes:
        size: Height and width.
        shorter: Or: the size of the shorter side, the other one in proportion (rounded down, as torchvision does).
        antialias: Let more pixels count where the image shrinks.
    """

    size: tuple[int, int] | None = None
    shorter: int | None = None
    antialias: bool = True

    def __post_init__(self) -> None:
        expect((self.size is None) != (self.shorter is None), self, "size", "one of `size` and `shorter`")
        expect(self.size is None or min(self.size) >= 1, self, "size", "a height and a width of 1 or more")
        expect(self.shorter is None or self.shorter >= 1, self, "shorter", "1 or more")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `[B, height, width, C]` in the dtype that went in."""
        whole = batch.dtype == np.uint8
        height, width = self.sizes(batch.shape[1], batch.shape[2])
        columns = bands(batch.shape[2], width, antialias=self.antialias)
        rows = bands(batch.shape[1], height, antialias=self.antialias)
        result = batch.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        result = np.concatenate([result[..., b.start : b.end] @ b.weights.T for b in columns], axis=3)
        result = rounded(result).astype(np.float32) if whole else result
        result = np.concatenate([b.weights @ result[..., b.start : b.end, :] for b in rows], axis=2)
        result = rounded(result) if whole else result
        return np.ascontiguousarray(result.transpose(0, 2, 3, 1))

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns the images in their new size.

        Raises:
            DataError: They are no images, or `shorter` is for a size that is not known.
        """
        _image(self, spec)
        height, width = spec.shape[1:3]
        if self.size is not None:
            return replace(spec, shape=(spec.shape[0], *self.size, spec.shape[3]))
        if isinstance(height, str) or isinstance(width, str):
            hint = "give `size`, or the sizes of the raw images in `raw`"
            raise refuse(self, spec, "images of known height and width", hint)
        return replace(spec, shape=(spec.shape[0], *self.sizes(height, width), spec.shape[3]))

    def sizes(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of what comes out."""
        if self.size is not None:
            return self.size
        assert self.shorter is not None
        if height <= width:
            return self.shorter, int(self.shorter * width / height)
        return int(self.shorter * height / width), self.shorter


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """Cuts the middle out of images; where it cannot be in the middle, as torchvision's `CenterCrop` places it.

    Attributes:
        size: Height and width, not larger than the image.
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        expect(min(self.size) >= 1, self, "size", "a height and a width of 1 or more")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `[B, height, width, C]` in the dtype that went in."""
        top, left = self.corner(batch.shape[1], batch.shape[2])
        return np.ascontiguousarray(batch[:, top : top + self.size[0], left : left + self.size[1]])

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns the images in their new size.

        Raises:
            DataError: They are no images of known size, or smaller.
        """
        _image(self, spec)
        _inside(self, spec, self.size)
        return replace(spec, shape=(spec.shape[0], *self.size, spec.shape[3]))

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Returns the first row and column that stay."""
        return round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)


@dataclass(frozen=True, slots=True)
class Crop:
    """Cuts a box out of images.

    Attributes:
        box: Left, top, right and bottom in pixels, the last two beyond the box, as in Pillow's `Image.crop`.
    """

    box: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        expect(0 <= left < right and 0 <= top < bottom, self, "box", "left < right and top < bottom, 0 or more")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `[B, bottom - top, right - left, C]` in the dtype that went in."""
        left, top, right, bottom = self.box
        return np.ascontiguousarray(batch[:, top:bottom, left:right])

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns the images in their new size.

        Raises:
            DataError: They are no images of known size, or the box goes beyond them.
        """
        left, top, right, bottom = self.box
        _image(self, spec)
        _inside(self, spec, (bottom, right))
        return replace(spec, shape=(spec.shape[0], bottom - top, right - left, spec.shape[3]))


@dataclass(frozen=True, slots=True)
class Grayscale:
    """Luminance of RGB by ITU-R BT.601: equal to Pillow's `Image.convert("L")`."""

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `[B, H, W, 1]` of `[B, H, W, 3]` in the dtype that went in."""
        result = np.matmul(batch.astype(np.float32), GRAY[:, None])
        return rounded(result) if batch.dtype == np.uint8 else result

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns the images with one channel.

        Raises:
            DataError: They have not three.
        """
        _image(self, spec, 3)
        return replace(spec, shape=(*spec.shape[:3], 1))


@dataclass(frozen=True, slots=True)
class Sobel:
    """Edges: the magnitude of Sobel's gradient for each channel, sqrt(x² + y²), in float32.

    At the border the outermost pixels count again (`scipy.ndimage.sobel(mode="nearest")`). Of uint8 images it is
    up to 1140; `normalize` scales it.
    """

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns float32 `[B, H, W, C]`."""
        image = np.pad(batch.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        across = image[:, :-2] + 2 * image[:, 1:-1] + image[:, 2:]
        down = image[:, :, :-2] + 2 * image[:, :, 1:-1] + image[:, :, 2:]
        x, y = across[:, :, 2:] - across[:, :, :-2], down[:, 2:] - down[:, :-2]
        result: Array = np.sqrt(x * x + y * y)
        return result

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 in the same shape.

        Raises:
            DataError: They are no images.
        """
        return replace(_image(self, spec), dtype="float32")


@dataclass(frozen=True, slots=True)
class ToChw:
    """Channels first, in float32, times `scale`: what torchvision's `ToTensor` does.

    Attributes:
        scale: 1 / 255 makes 0 to 1 of uint8.
    """

    scale: float = 1 / 255

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns float32 `[B, C, H, W]`."""
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2), np.float32) * np.float32(self.scale)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 `[batch, channels, height, width]`.

        Raises:
            DataError: They are no images.
        """
        _image(self, spec)
        return replace(spec, dtype="float32", shape=(spec.shape[0], spec.shape[3], *spec.shape[1:3]))


@dataclass(frozen=True, slots=True)
class Normalize:
    """(x - mean) / std for each channel, in float32.

    Attributes:
        mean: One number, or one for each channel.
        std: The same.
        axis: The axis of the channels, the batch is axis 0: 1 after `to_chw`, -1 before.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = 1

    def __post_init__(self) -> None:
        expect(len(self.mean) >= 1, self, "mean", "one number, or one for each channel")
        expect(len(self.std) >= 1 and min(self.std) > 0, self, "std", "numbers above 0")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns float32 in the same shape."""
        mean, std = self.constants(batch.ndim)
        return (batch.astype(np.float32) - mean) / std

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 in the same shape.

        Raises:
            DataError: They are no numbers, there is no such axis, or it has another size.
        """
        count = max(len(self.mean), len(self.std))
        axis = self.axis % len(spec.shape) if -len(spec.shape) < self.axis < len(spec.shape) else 0
        if spec.dtype == "str" or axis == 0:
            raise refuse(
                self, spec, f"numbers with a channel axis {self.axis}", "give `axis`; the batch is axis 0"
            )
        for option, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, spec.shape[axis]):
                expected = f"{len(values)} channels in axis {axis}, as many as `{option}` has"
                raise refuse(self, spec, expected, "give one number, one for each channel, or another `axis`")
        assert count >= 1
        return replace(spec, dtype="float32")

    def constants(self, axes: int) -> tuple[Array, Array]:
        """Returns mean and standard deviation, to be broadcast to data of so many axes."""
        shape = [1] * axes
        shape[self.axis] = -1
        return np.array(self.mean, np.float32).reshape(shape), np.array(self.std, np.float32).reshape(shape)


def nv12_weights(step: Nv12ToRgb) -> Array:
    """Returns float32 `[3, 3]`: R, G and B over Y, Cb and Cr, in multiples of 2^-14, so that sums are exact."""
    exact = np.array(NV12 if step.full_range else NV12_VIDEO)
    result: Array = (np.rint(exact * (1 << 14)) / (1 << 14)).astype(np.float32)
    return result


def rounded(values: np.ndarray) -> np.ndarray:
    """Returns uint8, rounded half up as Pillow rounds."""
    result: npt.NDArray[np.uint8] = np.clip(np.floor(values + np.float32(0.5)), 0, 255).astype(np.uint8)
    return result


def _image(step: Step, spec: TensorSpec, channels: int | None = None) -> TensorSpec:
    wrong = channels is not None and spec.shape[-1:] != (channels,)
    if len(spec.shape) != 4 or spec.dtype not in ("uint8", "float32") or wrong:
        wanted = f"uint8 or float32 images [batch, height, width, {channels or 'channels'}]"
        raise refuse(step, spec, wanted, "steps for images come before `to_chw`; a gray image has one channel")
    return spec


def _inside(step: Step, spec: TensorSpec, least: tuple[int, int]) -> None:
    for size, wanted in zip(spec.shape[1:3], least, strict=True):
        if isinstance(size, str) or size < wanted:
            wants = f"images of {least[0]} x {least[1]} or more, of known size"
            raise refuse(step, spec, wants, "put `resize` before it, or give the size of raw images in `raw`")
