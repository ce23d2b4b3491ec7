"""Filter banks as Kaldi computes them: what many speech and speaker models were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgemm.preprocess import spectrum
from edgemm.preprocess.audio import samples_of
from edgemm.preprocess.audio_features import LAYOUTS, Layout
from edgemm.preprocess.step import expect, refuse
from edgemm.tensors import Dim, TensorSpec

SMALLEST = float(np.finfo(np.float32).eps)
"""Kaldi takes the logarithm of no smaller energy."""


@dataclass(frozen=True, slots=True)
class KaldiFbank:
    """Log mel energies of waves `[batch, samples]` as Kaldi's `compute-fbank-feats` has them, without dither.

    Per frame: the mean is taken away, pre-emphasis, window, Fourier transform of the next power of 2, mel
    filters that are triangles on the mel scale, natural logarithm. `torchaudio.compliance.kaldi.fbank` and the
    feature extractor of transformers' AST compute the same. Only whole frames: 1 + (samples - window) // hop. In a
    graph all up to the spectrum is one convolution; a constant offset leaves its rounding, 1e-7 of it, behind.

    Attributes:
        rate: Samples per second.
        bands: Mel bands.
        window_ms: Length of a frame in milliseconds.
        hop_ms: Step between frames in milliseconds.
        low: Where the first filter begins, in hertz.
        high: Where the last filter ends; None: half of `rate`.
        emphasis: c of the pre-emphasis x[t] - c x[t - 1].
        gain: What waves from -1 to 1 are multiplied with: Kaldi's are 16-bit integers.
        window: Its shape, symmetric; AST has `hann`.
        layout: Order of the axes that come out; `channel` is a new one of size 1.
    """

    rate: int = 16000
    bands: int = 80
    window_ms: float = 25.0
    hop_ms: float = 10.0
    low: float = 20.0
    high: float | None = None
    emphasis: float = 0.97
    gain: float = 32768.0
    window: spectrum.Window = "povey"
    layout: Layout = "time_mel"

    def __post_init__(self) -> None:
        """Checks sizes and frequencies."""
        expect(self.rate > 0, self, "rate", "at least 1 Hz")
        expect(self.bands > 0, self, "bands", "at least 1")
        expect(self.size >= 2, self, "window_ms", "at least 2 samples")
        expect(self.hop >= 1, self, "hop_ms", "at least 1 sample")
        expect(0 <= self.emphasis <= 1, self, "emphasis", "0 to 1")
        expect(self.gain > 0, self, "gain", "over 0")
        high = self.rate / 2 if self.high is None else self.high
        expect(high <= self.rate / 2, self, "high", f"at most {self.rate / 2:g} Hz, half of the rate")
        expect(0 <= self.low < high, self, "low", f"at least 0 and less than {high:g} Hz")

    @property
    def size(self) -> int:
        """Samples of a frame."""
        return int(self.rate * self.window_ms * 0.001)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return int(self.rate * self.hop_ms * 0.001)

    @property
    def fft(self) -> int:
        """Length of the Fourier transform."""
        return 1 << (self.size - 1).bit_length()

    def basis(self) -> np.ndarray:
        """Returns `[2, bins, window]` float32: everything up to the spectrum, which is linear, as one matrix."""
        return _basis(self)

    def filters(self) -> np.ndarray:
        """Returns the mel filters `[bands, bins]` float32."""
        return _filters(self)

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the energies in `layout`, float32.

        Raises:
            DataError: The clips are shorter than a frame.
        """
        self._frames(batch.shape[1], TensorSpec("", "float32", batch.shape))
        made = np.stack([self._clip(wave) for wave in batch]) if len(batch) else np.zeros((0, self.bands, 0))
        axes = LAYOUTS[self.layout]
        arranged = made.transpose([a for a in axes if a is not None])
        return np.ascontiguousarray(arranged[:, None] if None in axes else arranged, np.float32)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 in `layout`; frames of symbolic samples are named after the input."""
        frames = self._frames(samples_of(self, spec), spec)
        sizes = (spec.shape[0], self.bands, frames)
        return TensorSpec(spec.name, "float32", tuple(1 if a is None else sizes[a] for a in LAYOUTS[self.layout]))

    def _frames(self, samples: Dim, spec: TensorSpec) -> Dim:
        if isinstance(samples, str):
            return f"{spec.name}_frames"
        if samples < self.size:
            hint = "feed longer clips, or put `fit_length` before it"
            raise refuse(self, spec, f"at least {self.size} samples", hint)
        return 1 + (samples - self.size) // self.hop

    def _clip(self, wave: np.ndarray) -> np.ndarray:
        """Returns `[bands, frames]` of one clip `[samples]`."""
        scaled = wave * np.float32(self.gain)
        frames = np.lib.stride_tricks.sliding_window_view(scaled, self.size)[:: self.hop]
        centred = frames - frames.mean(axis=1, keepdims=True)
        before = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
        weights = spectrum.window(self.window, self.size, periodic=False).astype(np.float32)
        spectra = np.fft.rfft((centred - np.float32(self.emphasis) * before) * weights, self.fft, axis=1)
        bands: np.ndarray = self.filters() @ (np.abs(spectra).astype(np.float32) ** 2).T
        return np.asarray(np.log(np.maximum(bands, np.float32(SMALLEST))))


@lru_cache(maxsize=8)
def _basis(step: KaldiFbank) -> np.ndarray:
    size = step.size
    centred = np.eye(size) - 1 / size
    emphasised = np.eye(size) - step.emphasis * np.eye(size, k=-1)
    emphasised[0, 0] -= step.emphasis
    weights = np.diag(spectrum.window(step.window, size, periodic=False) * step.gain)
    return np.asarray(
        (spectrum.dft(np.ones(step.fft))[..., :size] @ weights @ emphasised @ centred).astype(np.float32)
    )


@lru_cache(maxsize=8)
def _filters(step: KaldiFbank) -> np.ndarray:
    limits = (step.low, step.rate / 2 if step.high is None else step.high)
    return spectrum.kaldi_filters(step.bands, step.fft, step.rate, limits).astype(np.float32)
