"""Log-mel spectrograms in numpy: what a small device computes before the audio encoder."""

from __future__ import annotations

import numpy as np


def mel_filters(bands: int, fft: int, rate: int) -> np.ndarray:
    """Returns triangular filters `[bands, fft // 2 + 1]` on the HTK mel scale, from 60 Hz to `rate / 2`."""
    top = 2595 * np.log10(1 + np.array([60.0, rate / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(top[0], top[1], bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(fft, 1 / rate)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def log_mel(waves: np.ndarray, *, rate: int, bands: int, fft: int, hop: int) -> np.ndarray:
    """Returns the natural log of mel band energies, `[N, bands, samples // hop]` float32.

    Args:
        waves: `[N, samples]`, -1 to 1; frame t is centred on sample t * hop.
        rate: Samples per second.
        bands: Mel bands.
        fft: Window (Hann) and transform length in samples.
        hop: Step between frames in samples.
    """
    frames = waves.shape[1] // hop
    padded = np.pad(waves, ((0, 0), (fft // 2, fft)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, fft, axis=1)[:, ::hop][:, :frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(fft), axis=-1)) ** 2
    mel = power.astype(np.float32) @ mel_filters(bands, fft, rate).T
    return np.log(mel + 1e-4).astype(np.float32).transpose(0, 2, 1)
