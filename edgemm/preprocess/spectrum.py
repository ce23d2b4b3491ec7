"""The constants of audio features: windows, DFT and DCT matrices, mel filters, resampling kernels. Numpy only.

The reference in numpy and the graph in ONNX are made of the same constants, so they differ by rounding alone.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Window = Literal["hann", "hamming", "blackman", "povey", "rectangular"]
Mel = Literal["slaney", "htk"]

_COSINES = {"hann": (0.5, 0.5), "hamming": (0.54, 0.46), "blackman": (0.42, 0.5, 0.08)}
"""Terms of the windows that are sums of cosines, with alternating signs."""


def window(kind: Window, size: int, *, periodic: bool = True) -> Array:
    """Returns `size` weights, float64.

    Args:
        kind: The names of scipy; `povey` is Kaldi's: a symmetric Hann window to the power of 0.85.
        size: Samples.
        periodic: One period of an endless window, as librosa and torch make it for spectra; otherwise symmetric.
    """
    if kind == "rectangular" or size == 1:
        return np.ones(size)
    turns = 2 * np.pi * np.arange(size) / (size if periodic and kind != "povey" else size - 1)
    terms = _COSINES["hann" if kind == "povey" else kind]
    weights = sum((-1) ** k * a * np.cos(k * turns) for k, a in enumerate(terms))
    return np.asarray(np.maximum(weights, 0) ** 0.85 if kind == "povey" else weights)


def padded_window(kind: Window, size: int, fft: int, *, periodic: bool = True) -> Array:
    """Returns a window of `size` weights in the middle of `fft`, zeros around it, as librosa and torch do."""
    before = (fft - size) // 2
    return np.pad(window(kind, size, periodic=periodic), (before, fft - size - before))


def dft(weights: Array) -> Array:
    """Returns `[2, len(weights) // 2 + 1, len(weights)]` float64: windowed cosines and negative sines.

    `basis @ frame` is the real and the imaginary part of the frame's spectrum (`numpy.fft.rfft`).
    """
    size = len(weights)
    # the turns are whole numbers modulo `size`, so that no precision is lost for high bins
    turns = 2 * np.pi * (np.outer(np.arange(size // 2 + 1), np.arange(size)) % size) / size
    return np.stack([np.cos(turns), -np.sin(turns)]) * weights


def hertz_to_mel(hertz: Array, scale: Mel) -> Array:
    """Returns mels. `htk`: 2595 log10(1 + f / 700). `slaney`: linear to 1 kHz, then 27 steps per factor of 6.4."""
    if scale == "htk":
        return np.asarray(2595 * np.log10(1 + hertz / 700))
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) * 27 / math.log(6.4))


def mel_to_hertz(mel: Array, scale: Mel) -> Array:
    """Returns hertz; the inverse of `hertz_to_mel`."""
    if scale == "htk":
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))


def mel_filters(
    bands: int, fft: int, rate: int, limits: tuple[float, float], *, scale: Mel, equal_area: bool
) -> Array:
    """Returns triangular filters `[bands, fft // 2 + 1]`, float64.

    They are those of `librosa.filters.mel(htk=scale == "htk", norm="slaney" if equal_area else None)` and of
    `torchaudio.functional.melscale_fbanks(mel_scale=scale, norm=...)`, transposed.

    Args:
        bands: Filters.
        fft: Length of the Fourier transform in samples.
        rate: Samples per second.
        limits: Where the first filter begins and the last one ends, in hertz.
        scale: On which mel scale the edges are equally spaced.
        equal_area: Divide each filter by its width (Slaney's Auditory Toolbox); otherwise each peak is 1.
    """
    low, high = hertz_to_mel(np.array(limits, np.float64), scale)
    edges = mel_to_hertz(np.linspace(low, high, bands + 2), scale)
    bins = np.arange(fft // 2 + 1) * (rate / fft)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    if equal_area:
        filters = filters * (2 / (edges[2:] - edges[:-2]))[:, None]
    return np.asarray(filters)


def kaldi_filters(bands: int, fft: int, rate: int, limits: tuple[float, float]) -> Array:
    """Returns filters `[bands, fft // 2 + 1]`, float64: triangles over mels, as Kaldi's `MelBanks` has them.

    Those of `mel_filters` are triangles over hertz. The last frequency, half of the rate, is in none of them.
    """
    low, high = 1127 * np.log(1 + np.array(limits, np.float64) / 700)
    edges = np.linspace(low, high, bands + 2)
    bins = 1127 * np.log(1 + np.arange(fft // 2 + 1) * (rate / fft) / 700)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    filters[:, -1] = 0
    return np.asarray(filters)


def dct(coefficients: int, bands: int) -> Array:
    """Returns `[coefficients, bands]`: first rows of the orthonormal DCT-II (`scipy.fft.dct(norm="ortho")`)."""
    angles = np.pi / bands * np.outer(np.arange(coefficients), np.arange(bands) + 0.5)
    rows = np.cos(angles) * math.sqrt(2 / bands)
    rows[0] /= math.sqrt(2)
    return np.asarray(rows)


def lifter(coefficients: int, strength: float) -> Array:
    """Returns `[coefficients]`: 1 + L / 2 sin(pi k / L) with k from 1 (HTK book 5.6; `librosa.feature.mfcc`)."""
    if strength <= 0:
        return np.ones(coefficients)
    return np.asarray(1 + strength / 2 * np.sin(np.pi * np.arange(1, coefficients + 1) / strength))


def resampling_kernels(source: int, wanted: int, zeros: int, rolloff: float) -> tuple[Array, int]:
    """Returns the `[wanted, taps]` filters, one per phase, and the samples that they reach to the left.

    Windowed-sinc interpolation (Smith, "Digital Audio Resampling"), with the Hann window of
    `torchaudio.functional.resample`: output sample `wanted * i + p` is filter `p` times the samples from
    `source * i - left` on.

    Args:
        source: Samples per second before, over the greatest common divisor.
        wanted: Samples per second after, over the greatest common divisor.
        zeros: Zero crossings of the sinc to each side; more is sharper and slower.
        rolloff: Cut-off as a share of the lower Nyquist frequency.
    """
    cutoff = min(source, wanted) * rolloff
    left = math.ceil(zeros * source / cutoff)
    times = np.arange(-left, left + source) / source - np.arange(wanted)[:, None] / wanted
    times = np.clip(times * cutoff, -zeros, zeros)
    return np.sinc(times) * np.cos(times * np.pi / zeros / 2) ** 2 * (cutoff / source), left
