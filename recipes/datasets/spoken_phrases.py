"""Spoken phrases of one to three words, in noise, with a sketch of the speaker's voice: for recognition with CTC.

All of it is synthetic speech (espeak-ng). Training, calibration and evaluation share no voice and no phrase of
several words. Lengths differ, so a split is a list of shards, each with phrases of one number of frames.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from recipes.datasets import speech
from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.logmel import htk_filters, log_mel

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("lights", "music", "window", "door", "open", "close", "left", "right", "stop", "go"),
)
ALPHABET = " abcdefghijklmnopqrstuvwxyz"
"""Character i has class i + 1; class 0 is the blank of CTC."""

LONGEST = 24
"""Characters of the label array; unused ones are -1."""

BANDS, FFT, HOP, STEP = 40, 512, 352, 16
"""Mel bands; samples of the transform and between frames; lengths are multiples of STEP frames."""

FILTERS = htk_filters(BANDS, FFT, speech.SAMPLE_RATE)
SPLITS = ("train", "calib", "eval")


@dataclass(frozen=True, slots=True)
class Options:
    """Size and difficulty. Equal options give equal arrays.

    Attributes:
        phrases: Phrases in train, calib and eval.
        snr_db: Least and most ratio of speech to noise.
        seed: Of everything random.
    """

    phrases: tuple[int, int, int] = (3000, 300, 600)
    snr_db: tuple[float, float] = (5.0, 25.0)
    seed: int = 11


def load(options: Options = Options()) -> dict[str, list[Arrays]]:
    """Returns the splits `train`, `calib` and `eval` as shards, from the cache if they were built before.

    Each shard has `audio` `[N,40,T]` float32 (log-mel, 16 ms between frames, T one of 32, 48, ...), `speaker`
    `[N,80]` float32 (mean and deviation per band of something else that the same voice says) and `text` `[N,24]`
    int64.

    Raises:
        RuntimeError: espeakng-loader is not installed.
    """
    key = f"2 {asdict(options)} {speech.version()}"
    flat = cached_arrays("spoken_phrases", key, lambda: _build(options))
    splits: dict[str, list[Arrays]] = {split: [] for split in SPLITS}
    for name in (n for n in flat if n.endswith("/audio")):
        split, frames, _ = name.split("/")
        parts = ("audio", "speaker", "text")
        splits[split].append({part: np.ascontiguousarray(flat[f"{split}/{frames}/{part}"]) for part in parts})
    return splits


def encode(text: str) -> np.ndarray:
    """Returns the classes of a phrase, `[24]` int64, padded with -1."""
    classes = np.full(LONGEST, -1, np.int64)
    classes[: len(text)] = [ALPHABET.index(character) + 1 for character in text]
    return classes


def _build(options: Options) -> Arrays:
    rng = np.random.default_rng(options.seed)
    families = speech.voice_families()
    order = rng.permutation(len(families))
    cuts = (len(families) * 62 // 100, len(families) * 75 // 100)
    seen: set[str] = set()
    arrays: Arrays = {}
    for split, count, part in zip(SPLITS, options.phrases, np.split(order, cuts), strict=True):
        texts = _phrases(rng, count, seen)
        waves, sketches = _say(rng, texts, [families[f] for f in part], options)
        frames = np.array([len(wave) // HOP for wave in waves])
        for length in sorted(set(frames.tolist())):
            rows = np.flatnonzero(frames == length)
            arrays[f"{split}/{length}/audio"] = np.concatenate([_features(waves[r][None]) for r in rows])
            arrays[f"{split}/{length}/speaker"] = sketches[rows]
            arrays[f"{split}/{length}/text"] = np.stack([encode(texts[r]) for r in rows])
    return arrays


def _phrases(rng: np.random.Generator, count: int, seen: set[str]) -> list[str]:
    """Returns phrases; those of several words that `seen` has are left out, and new ones are added to it."""
    texts: list[str] = []
    own: set[str] = set()
    while len(texts) < count:
        text = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
        if text in seen or len(text) > LONGEST:
            continue
        texts.append(text)
        own |= {text} if " " in text else set()
    seen |= own
    return texts


def _say(
    rng: np.random.Generator, texts: list[str], families: list[tuple[str, ...]], options: Options
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns noisy waves whose length is a multiple of STEP frames, and the sketches of who says them."""
    speakers = []
    for _ in texts:
        voice = rng.choice(families[rng.integers(len(families))])
        accent = speech.ACCENTS[rng.integers(len(speech.ACCENTS))]
        speakers.append((str(voice), accent, int(rng.integers(130, 190)), int(rng.integers(20, 80))))
    other = [" ".join(rng.choice(WORDS, 3)) for _ in texts]
    spoken = speech.synthesize(
        [speech.Utterance(t, *who) for both in (texts, other) for t, who in zip(both, speakers, strict=True)]
    )
    waves = []
    for wave in spoken[: len(texts)]:
        size = -(-(len(wave) + 4 * HOP) // (STEP * HOP)) * STEP * HOP
        noisy = np.zeros(size, np.float32)
        start = rng.integers(0, size - len(wave) + 1)
        noisy[start : start + len(wave)] = wave
        level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(*options.snr_db) / 20)
        noisy += level * rng.standard_normal(size, dtype=np.float32)
        waves.append((0.1 * noisy / np.sqrt(np.mean(noisy**2))).astype(np.float32))
    heard = [_features(0.1 * w[None] / np.sqrt(np.mean(w**2)))[0] for w in spoken[len(texts) :]]
    sketches = np.stack([np.concatenate([h.mean(1), h.std(1)]) for h in heard])
    return waves, sketches.astype(np.float32)


def _features(waves: np.ndarray) -> np.ndarray:
    mel = log_mel(waves, FILTERS, np.hanning(FFT), hop=HOP, floor=1e-3)
    return np.ascontiguousarray((mel + 1) / 2.5, np.float32)
