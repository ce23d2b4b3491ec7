"""ONNX nodes of the steps for sound. Resampling and Fourier transform are convolutions: all engines have them.

ONNX Runtime computes them several times faster than its operator STFT as well.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import onnx_ir as ir

from edgemm.bake.tape import Tape
from edgemm.preprocess import audio, audio_features, kaldi
from edgemm.tensors import TensorSpec

_TO_THE_END = np.iinfo(np.int64).max


def pcm(tape: Tape, value: ir.Value, step: audio.Pcm, spec: TensorSpec) -> ir.Value:
    """Casts and scales."""
    value = tape.cast(value)
    if spec.dtype == "uint8":
        value = tape.op("Sub", [value, tape.constant(128.0)])
    return tape.op("Mul", [value, tape.constant(step.scale(spec.dtype))])


def mono(tape: Tape, value: ir.Value, step: audio.Mono, spec: TensorSpec) -> ir.Value:
    """Averages the last axis."""
    return tape.op("ReduceMean", [value, tape.integers(-1)], keepdims=0)


def fit_length(tape: Tape, value: ir.Value, step: audio.FitLength, spec: TensorSpec) -> ir.Value:
    """Fills with `length` zeros, whatever came in, and cuts."""
    if spec.shape[1] == step.length:
        return value
    start, axes = step.keep == "start", len(spec.shape)
    pads = [0] * (2 * axes)
    pads[axes + 1 if start else 1] = step.length
    value = tape.op("Pad", [value, tape.integers(*pads)])
    ends = (0, step.length) if start else (-step.length, _TO_THE_END)
    return _slice(tape, value, 1, *ends)


def resample(tape: Tape, value: ir.Value, step: audio.Resample, spec: TensorSpec) -> ir.Value:
    """Convolves with one filter per phase; the stride is the rate before, the phases are what lies between."""
    before, after = step.ratio
    if before == after:
        return value
    filters, left = step.kernels()
    wave = tape.op("Unsqueeze", [value, tape.integers(1)])
    weights = tape.constant(filters[:, None])
    phases = tape.op("Conv", [wave, weights], strides=[before], pads=[left, left + before - 1])
    if after == 1:
        return tape.op("Squeeze", [phases, tape.integers(1)])
    flat = tape.op("Reshape", [tape.op("Transpose", [phases], perm=[0, 2, 1]), tape.integers(0, -1)])
    samples = spec.shape[1]
    if isinstance(samples, int):
        wanted = ceil(samples * after / before)
        return flat if wanted == after * ceil(samples / before) else _slice(tape, flat, 1, 0, wanted)
    if before == 1:
        return flat
    size = tape.op("Mul", [tape.op("Shape", [value], start=1, end=2), tape.integers(after)])
    size = tape.op("Div", [tape.op("Add", [size, tape.integers(before - 1)]), tape.integers(before)])
    return tape.op("Slice", [flat, tape.integers(0), size, tape.integers(1)])


def pre_emphasis(tape: Tape, value: ir.Value, step: audio.PreEmphasis, spec: TensorSpec) -> ir.Value:
    """Subtracts the wave, one sample later."""
    later = tape.op("Pad", [_slice(tape, value, 1, 0, -1), tape.integers(0, 1, 0, 0)])
    return tape.op("Sub", [value, tape.op("Mul", [later, tape.constant(step.coefficient)])])


def normalize_clip(tape: Tape, value: ir.Value, step: audio.NormalizeClip, spec: TensorSpec) -> ir.Value:
    """Reduces over the axes, subtracts and divides."""
    axes, epsilon = tape.integers(*step.axes(len(spec.shape))), tape.constant(step.epsilon)
    if step.by == "peak":
        peak = tape.op("ReduceMax", [tape.op("Abs", [value]), axes])
        return tape.op("Div", [value, tape.op("Add", [peak, epsilon])])
    if step.by != "rms":
        value = tape.op("Sub", [value, tape.op("ReduceMean", [value, axes])])
    if step.by == "mean":
        return value
    power = tape.op("ReduceMean", [tape.op("Mul", [value, value]), axes])
    return tape.op("Div", [value, tape.op("Sqrt", [tape.op("Add", [power, epsilon])])])


def log_mel(tape: Tape, value: ir.Value, step: audio_features.LogMel, spec: TensorSpec) -> ir.Value:
    """Convolves with windowed cosines and sines, squares, and multiplies with the mel filters.

    Energies are cos² + sin²: with the filters side by side one product does the sum as well. Frequencies that no
    filter sees are left out.
    """
    filters, basis = _seen(step.filters(), step.basis())
    if step.centre != "none":
        pads = tape.integers(0, step.fft // 2, 0, step.fft // 2)
        value = tape.op("Pad", [value, pads], mode="reflect" if step.centre == "reflect" else "constant")
    wave = tape.op("Unsqueeze", [value, tape.integers(1)])
    spectra = tape.op("Conv", [wave, tape.constant(basis)], strides=[step.hop])
    if step.drop_last:
        spectra = _slice(tape, spectra, 2, 0, -1)
    squares = tape.op("Mul", [spectra, spectra])
    if step.power == 1:
        cosines, sines = tape.ops("Split", [squares], 2, axis=1, num_outputs=2)
        bands = tape.op("MatMul", [tape.constant(filters), tape.op("Sqrt", [tape.op("Add", [cosines, sines])])])
    else:
        bands = tape.op("MatMul", [tape.constant(np.concatenate([filters, filters], axis=1)), squares])
    bands = _logarithm(tape, bands, step)
    matrix = step.matrix()
    if matrix is not None:
        bands = tape.op("MatMul", [tape.constant(matrix), bands])
    return _arrange(tape, bands, step.layout)


def kaldi_fbank(tape: Tape, value: ir.Value, step: kaldi.KaldiFbank, spec: TensorSpec) -> ir.Value:
    """Does the same; taking the mean away and pre-emphasis are in the kernels."""
    filters, basis = _seen(step.filters(), step.basis())
    wave = tape.op("Unsqueeze", [value, tape.integers(1)])
    spectra = tape.op("Conv", [wave, tape.constant(basis)], strides=[step.hop])
    squares = tape.op("Mul", [spectra, spectra])
    bands = tape.op("MatMul", [tape.constant(np.concatenate([filters, filters], axis=1)), squares])
    logs = tape.op("Log", [tape.op("Max", [bands, tape.constant(kaldi.SMALLEST)])])
    return _arrange(tape, logs, step.layout)


def _seen(filters: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns filters `[bands, bins]` and kernels `[2 bins, 1, taps]` of the frequencies that a filter sees."""
    seen = filters.any(axis=0)
    return filters[:, seen], basis[:, seen].reshape(-1, 1, basis.shape[2])


def _logarithm(tape: Tape, bands: ir.Value, step: audio_features.LogMel) -> ir.Value:
    if step.unit == "none":
        return bands
    floored = tape.op("Add" if step.floor_by == "add" else "Max", [bands, tape.constant(step.floor)])
    logs = tape.op("Log", [floored])
    if step.unit != "ln":
        logs = tape.op("Mul", [logs, tape.constant(step.decade / np.log(10))])
    if step.limit is None:
        return logs
    loudest = tape.op("ReduceMax", [logs, tape.integers(1, 2)])
    return tape.op("Max", [logs, tape.op("Sub", [loudest, tape.constant(step.limit)])])


def _arrange(tape: Tape, bands: ir.Value, layout: audio_features.Layout) -> ir.Value:
    axes = audio_features.LAYOUTS[layout]
    order = [a for a in axes if a is not None]
    if order != [0, 1, 2]:
        bands = tape.op("Transpose", [bands], perm=order)
    return tape.op("Unsqueeze", [bands, tape.integers(1)]) if None in axes else bands


def _slice(tape: Tape, value: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    return tape.op("Slice", [value, tape.integers(start), tape.integers(end), tape.integers(axis)])
