"""What a picture shows and what a review says: small colour images beside film reviews.

Nothing joins an image to a review but chance, so a class is a pair of classes, and neither modality alone can
answer: training may pair any image with any review.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.colour_images import load_images
from recipes.datasets.movies import load_reviews
from recipes.datasets.words import fit_words, word_ids

WORDS = 8000
"""Ids of the vocabulary; 0 is padding, 1 an unknown word."""

LENGTH = 128
"""Words per review, its last ones."""

SPLITS = ("train", "calib", "eval")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the sources is used. Equal sizes give equal arrays.

    Attributes:
        images: Images in train, calib and eval; together at most 5,000 without the user's CIFAR-10.
        texts: Reviews in train, calib and eval, even numbers.
    """

    images: tuple[int, int, int] = (3200, 600, 1200)
    texts: tuple[int, int, int] = (14000, 600, 1200)


QUICK = Sizes((320, 64, 64), (320, 64, 64))
"""As much as shows that everything runs."""

CIFAR, IMDB = "cifar-10-batches-bin", "aclImdb"
"""Folders that a `data_root` may have, as the archives of CIFAR-10 and of IMDb unpack."""


def load(data_root: Path | None = None, sizes: Sizes = Sizes()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    `calib` and `eval` are pairs: `image` `[N,3,32,32]` float32, `text` `[N,128]` int64 word ids, `label` `[N,2]`
    int64 (class of the image, verdict: 0 negative, 1 positive). `train` is not paired: `image` and `image_label`
    `[M]`, `text` and `text_label` `[K]`.

    Args:
        data_root: Folder with the user's `cifar-10-batches-bin` and `aclImdb`; what it lacks comes from the
            installed packages, as everything does without it.
        sizes: Images and reviews per split.

    Raises:
        RuntimeError: A package is not installed, or what the folder has is not as published.
    """
    flat = _arrays(data_root, sizes)
    unpaired, pairs = ("image", "image_label", "text", "text_label"), ("image", "text", "label")
    return {
        split: {name: flat[f"{split}_{name}"] for name in (unpaired if split == "train" else pairs)}
        for split in SPLITS
    }


def tokenizer(data_root: Path | None = None, sizes: Sizes = Sizes()) -> str:
    """Returns the `tokenizer.json` that made the word ids of `load(data_root, sizes)`."""
    return _arrays(data_root, sizes)["tokenizer"].tobytes().decode()


def _arrays(data_root: Path | None, sizes: Sizes) -> Arrays:
    images, texts = (own_folder(data_root, name) for name in (CIFAR, IMDB))
    own = [digest(folder) for folder in (images, texts) if folder]
    key = f"4 {asdict(sizes)} {WORDS} {LENGTH} {own}"
    return cached_arrays("image_text", key, lambda: _build(sizes, images, texts))


def own_folder(data_root: Path | None, name: str) -> Path | None:
    """Returns the user's folder called `name`, or None where there is none."""
    return data_root / name if data_root is not None and (data_root / name).is_dir() else None


def digest(folder: Path) -> tuple[str, int, int]:
    """Returns what tells one copy from another without reading it: where, how many files, how many bytes."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return str(folder.resolve()), len(sizes), sum(sizes)


def _build(sizes: Sizes, images: Path | None, texts: Path | None) -> Arrays:
    rng = np.random.default_rng(5)
    seen = load_images(dict(zip(SPLITS, sizes.images, strict=True)), 5, images)
    read = load_reviews(dict(zip(SPLITS, sizes.texts, strict=True)), texts)
    words = fit_words(read["train"][0], WORDS)
    flat = {"tokenizer": np.frombuffer(words.encode(), np.uint8)}
    for split in SPLITS:
        pictures, classes = seen[split]
        ids, verdicts = word_ids(words, read[split][0], LENGTH), read[split][1]
        if split == "train":
            flat |= {"train_image": pictures, "train_image_label": classes}
            flat |= {"train_text": ids, "train_text_label": verdicts}
            continue
        count = min(len(pictures), len(ids))
        chosen = rng.permutation(len(ids))[:count]
        flat[f"{split}_image"], flat[f"{split}_text"] = pictures[:count], ids[chosen]
        flat[f"{split}_label"] = np.stack([classes[:count], verdicts[chosen]], axis=1)
    return flat
