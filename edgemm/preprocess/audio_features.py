"""Steps from waves to what speech and sound models take: log-mel spectrograms and cepstral coefficients.

The constants are in `spectrum`; a graph is made of the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from edgemm.preprocess import spectrum
from edgemm.preprocess.audio import samples_of
from edgemm.preprocess.step import expect, refuse
from edgemm.tensors import Dim, TensorSpec

Layout = Literal["mel_time", "time_mel", "channel_mel_time", "channel_time_mel"]
LAYOUTS = {
    "mel_time": (0, 1, 2),
    "time_mel": (0, 2, 1),
    "channel_mel_time": (0, None, 1, 2),
    "channel_time_mel": (0, None, 2, 1),
}
"""Layout -> the axes of `[batch, bands, frames]` in its order; None is a new axis of size 1."""


@dataclass(frozen=True, slots=True)
class LogMel:
    """Log-mel spectrogram of waves `[batch, samples]`: windows, Fourier transform, mel filters, logarithm.

    With `centre: reflect` there are 1 + samples // hop frames, frame t around sample t * hop, as librosa and torch
    have it. A graph computes the Fourier transform as a convolution with windowed cosines and sines, which every
    engine runs. Rounding of float32 is about 1e-6 of the loudest band of a frame: bands 120 dB below it differ.

    Attributes:
        rate: Samples per second.
        bands: Mel bands. One that lies between two frequencies of the transform is empty: always `floor`.
        fft: Length of the Fourier transform in samples.
        hop: Step between frames in samples.
        window_size: Samples of the window, in the middle of `fft`; None: `fft`.
        window: Its shape.
        periodic: The window is one period of an endless one (librosa, torch); otherwise symmetric (numpy, Kaldi).
        centre: How the ends are filled so that frame t is around sample t * hop: `reflect` (torch) or `zero`
            (librosa from 0.10 on). `none`: frame t begins at sample t * hop; 1 + (samples - fft) // hop frames.
        drop_last: Leave the last frame out, as Whisper does.
        low: Where the first filter begins, in hertz.
        high: Where the last filter ends; None: half of `rate`.
        scale: Mel scale, `slaney` (librosa) or `htk` (torchaudio).
        equal_area: Divide each filter by its width, as librosa does; otherwise each peak is 1.
        power: 2 for energies, 1 for magnitudes.
        unit: `ln`, `log10`, `db` (10 log10 of energies, 20 log10 of magnitudes), or `none` for no logarithm.
        floor: Smallest value whose logarithm is taken.
        floor_by: `max(value, floor)`, or `add`: value + floor.
        range_db: Nothing is further than this below the loudest band of its clip (`top_db` of librosa); None: off.
        layout: Order of the axes that come out; `channel` is a new one of size 1.
    """

    rate: int
    bands: int
    fft: int
    hop: int
    window_size: int | None = None
    window: spectrum.Window = "hann"
    periodic: bool = True
    centre: Literal["reflect", "zero", "none"] = "reflect"
    drop_last: bool = False
    low: float = 0.0
    high: float | None = None
    scale: spectrum.Mel = "slaney"
    equal_area: bool = True
    power: Literal[1, 2] = 2
    unit: Literal["ln", "log10", "db", "none"] = "ln"
    floor: float = 1e-10
    floor_by: Literal["max", "add"] = "max"
    range_db: float | None = None
    layout: Layout = "mel_time"

    def __post_init__(self) -> None:
        """Checks sizes and frequencies."""
        _check_spectrum(self)

    @property
    def rows(self) -> int:
        """Values per frame."""
        return self.bands

    @property
    def decade(self) -> float:
        """What a factor of 10 in `power` is in the unit."""
        return {"ln": float(np.log(10)), "log10": 1.0, "db": 20.0 / self.power, "none": 0.0}[self.unit]

    @property
    def limit(self) -> float | None:
        """`range_db` in the unit."""
        return None if self.range_db is None else self.range_db * self.power / 20 * self.decade

    def basis(self) -> np.ndarray:
        """Returns `[2, bins, fft]` float32: windowed cosines and negative sines."""
        return _basis(self)

    def filters(self) -> np.ndarray:
        """Returns the mel filters `[bands, bins]` float32."""
        return _filters(self)

    def matrix(self) -> np.ndarray | None:
        """Returns what is multiplied with the bands of a frame at last, `[rows, bands]` float32, or None."""
        return None

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the spectrograms in `layout`, float32.

        Raises:
            DataError: The clips are shorter than what is mirrored at their ends, or than a window.
        """
        self._frames(batch.shape[1], TensorSpec("", "float32", batch.shape))
        bands = np.stack([self._clip(wave) for wave in batch]) if len(batch) else np.zeros((0, self.rows, 0))
        axes = LAYOUTS[self.layout]
        arranged = bands.transpose([a for a in axes if a is not None])
        return np.ascontiguousarray(arranged[:, None] if None in axes else arranged, np.float32)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 in `layout`; frames of symbolic samples are named after the input."""
        samples = samples_of(self, spec)
        sizes = (spec.shape[0], self.rows, self._frames(samples, spec))
        return TensorSpec(spec.name, "float32", tuple(1 if a is None else sizes[a] for a in LAYOUTS[self.layout]))

    def _frames(self, samples: Dim, spec: TensorSpec) -> Dim:
        if isinstance(samples, str):
            return f"{spec.name}_frames"
        least = {"none": self.fft, "reflect": self.fft // 2 + 1, "zero": 1}[self.centre]
        if samples < least:
            raise refuse(
                self, spec, f"at least {least} samples", "feed longer clips, or put `fit_length` before it"
            )
        around = self.fft // 2 * 2 if self.centre != "none" else 0
        frames = 1 + (samples + around - self.fft) // self.hop - self.drop_last
        if frames < 1:
            raise refuse(self, spec, "samples for one frame", "feed longer clips, or set `drop_last: false`")
        return frames

    def _clip(self, wave: np.ndarray) -> np.ndarray:
        """Returns `[rows, frames]` of one clip `[samples]`."""
        if self.centre != "none":
            wave = np.pad(wave, self.fft // 2, mode="reflect" if self.centre == "reflect" else "constant")
        frames = np.lib.stride_tricks.sliding_window_view(wave, self.fft)[:: self.hop]
        frames = frames[: len(frames) - self.drop_last] * _weights(self)
        spectra = np.abs(np.fft.rfft(frames, axis=-1)).astype(np.float32)
        bands: np.ndarray = self.filters() @ (spectra**2 if self.power == 2 else spectra).T
        return self._finish(bands)

    def _finish(self, bands: np.ndarray) -> np.ndarray:
        if self.unit == "none":
            return bands
        floor = np.float32(self.floor)
        floored = bands + floor if self.floor_by == "add" else np.maximum(bands, floor)
        logs: np.ndarray = np.log(floored) * np.float32(self.decade / np.log(10))
        return logs if self.limit is None else np.maximum(logs, logs.max() - np.float32(self.limit))


@dataclass(frozen=True, slots=True)
class Mfcc(LogMel):
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II of a log-mel spectrogram, as librosa has them.

    Takes the options of `log_mel`; librosa's and torchaudio's are `unit: db` and `range_db: 80`.

    Attributes:
        coefficients: How many, from the 0th on.
        lifter: Weight of the higher ones, L in 1 + L / 2 sin(pi k / L); 0: none.
    """

    coefficients: int = 20
    lifter: float = 0.0
    unit: Literal["ln", "log10", "db", "none"] = "db"
    range_db: float | None = 80.0

    def __post_init__(self) -> None:
        """Checks the options of `log_mel`, and the number of coefficients."""
        _check_spectrum(self)
        expect(1 <= self.coefficients <= self.bands, self, "coefficients", f"1 to {self.bands}, the bands")
        expect(self.lifter >= 0, self, "lifter", "at least 0")

    @property
    def rows(self) -> int:
        """Values per frame."""
        return self.coefficients

    def matrix(self) -> np.ndarray | None:
        """Returns the DCT with the lifter in it, `[coefficients, bands]` float32."""
        return _cepstrum(self)

    def _finish(self, bands: np.ndarray) -> np.ndarray:
        result: np.ndarray = _cepstrum(self) @ LogMel._finish(self, bands)
        return result


def _check_spectrum(step: LogMel) -> None:
    expect(step.rate > 0, step, "rate", "at least 1 Hz")
    expect(step.bands > 0, step, "bands", "at least 1")
    expect(step.fft >= 2 and step.fft % 2 == 0, step, "fft", "an even number of samples")
    expect(step.hop > 0, step, "hop", "at least 1 sample")
    size = step.fft if step.window_size is None else step.window_size
    expect(2 <= size <= step.fft, step, "window_size", f"2 to {step.fft} samples, the `fft`")
    high = step.rate / 2 if step.high is None else step.high
    expect(high <= step.rate / 2, step, "high", f"at most {step.rate / 2:g} Hz, half of the rate")
    expect(0 <= step.low < high, step, "low", f"at least 0 and less than {high:g} Hz")
    expect(step.floor > 0, step, "floor", "over 0")
    expect(step.range_db is None or step.range_db > 0, step, "range_db", "over 0 dB")


@lru_cache(maxsize=16)
def _weights(step: LogMel) -> np.ndarray:
    size = step.fft if step.window_size is None else step.window_size
    weights = spectrum.padded_window(step.window, size, step.fft, periodic=step.periodic)
    return weights.astype(np.float32)


@lru_cache(maxsize=16)
def _basis(step: LogMel) -> np.ndarray:
    return spectrum.dft(_weights(step).astype(np.float64)).astype(np.float32)


@lru_cache(maxsize=16)
def _filters(step: LogMel) -> np.ndarray:
    limits = (step.low, step.rate / 2 if step.high is None else step.high)
    filters = spectrum.mel_filters(
        step.bands, step.fft, step.rate, limits, scale=step.scale, equal_area=step.equal_area
    )
    return filters.astype(np.float32)


@lru_cache(maxsize=16)
def _cepstrum(step: Mfcc) -> np.ndarray:
    weights = spectrum.lifter(step.coefficients, step.lifter)
    return (spectrum.dct(step.coefficients, step.bands) * weights[:, None]).astype(np.float32)
