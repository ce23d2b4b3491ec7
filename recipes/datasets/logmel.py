"""Log-mel spectrograms in numpy: what a small device computes before the audio encoder."""

from __future__ import annotations

import numpy as np


def htk_filters(bands: int, fft: int, rate: int) -> np.ndarray:
    """Returns triangular filters `[bands, fft // 2 + 1]` on the HTK mel scale, from 60 Hz to `rate / 2`."""
    top = 2595 * np.log10(1 + np.array([60.0, rate / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(top[0], top[1], bands + 2) / 2595) - 1)
    return _triangles(edges, fft, rate).astype(np.float32)


def slaney_filters(bands: int, fft: int, rate: int) -> np.ndarray:
    """Returns filters `[bands, fft // 2 + 1]` as librosa makes them: linear below 1 kHz, equal areas."""
    step = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(rate / 2 / 1000) / step, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    return (_triangles(edges, fft, rate) * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def _triangles(edges: np.ndarray, fft: int, rate: int) -> np.ndarray:
    bins = np.fft.rfftfreq(fft, 1 / rate)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


def log_mel(waves: np.ndarray, filters: np.ndarray, window: np.ndarray, *, hop: int, floor: float) -> np.ndarray:
    """Returns the natural log of mel band energies plus `floor`, `[N, bands, samples // hop]` float32.

    Args:
        waves: `[N, samples]`, -1 to 1; frame t is centred on sample t * hop.
        filters: `[bands, fft // 2 + 1]`.
        window: At most `fft` weights.
        hop: Step between frames in samples.
        floor: Smallest energy.
    """
    fft = 2 * (filters.shape[1] - 1)
    frames = waves.shape[1] // hop
    padded = np.pad(waves, ((0, 0), (fft // 2, fft)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, fft, axis=1)[:, ::hop][:, :frames]
    power = np.abs(np.fft.rfft(windows[..., : len(window)] * window, fft, axis=-1)) ** 2
    mel = power.astype(np.float32) @ filters.T
    return np.log(mel + floor).astype(np.float32).transpose(0, 2, 1)
