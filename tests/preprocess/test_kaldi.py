"""Kaldi's filter banks against the published code of torchaudio.compliance.kaldi, written out in torch."""

import math

import numpy as np
import pytest
import torch

from edgemm.errors import DataError, RecipeError
from edgemm.preprocess import output_of, parse, to_json
from edgemm.preprocess.kaldi import KaldiFbank
from edgemm.tensors import TensorSpec

WAVES = np.random.default_rng(2).normal(0.02, 0.1, (2, 8000)).astype(np.float32)
WAVES += 0.2 * np.sin(2 * np.pi * 300 * np.arange(8000) / 16000, dtype=np.float32)


def mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)


def torchaudio_fbank(waveform: torch.Tensor, bands: int, rate: int, low: float) -> torch.Tensor:
    """torchaudio.compliance.kaldi.fbank with dither 0, snip_edges and Povey's window; [frames, bands]."""
    window_size, window_shift = int(rate * 0.025), int(rate * 0.01)
    padded_window_size = 2 ** math.ceil(math.log2(window_size))
    frames = waveform.unfold(0, window_size, window_shift)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.nn.functional.pad(frames[None], (1, 0), mode="replicate")[0]
    frames = frames - 0.97 * previous[:, :-1]
    frames = frames * torch.hann_window(window_size, periodic=False, dtype=frames.dtype).pow(0.85)
    frames = torch.nn.functional.pad(frames, (0, padded_window_size - window_size))
    spectrum = torch.fft.rfft(frames).abs().pow(2.0)
    bins = padded_window_size // 2
    low_mel, high_mel = mel(low), mel(rate / 2)
    delta = (high_mel - low_mel) / (bands + 1)
    left = low_mel + torch.arange(bands, dtype=frames.dtype)[:, None] * delta
    mels = 1127.0 * (1.0 + rate / padded_window_size * torch.arange(bins, dtype=frames.dtype) / 700.0).log()
    banks = torch.max(torch.zeros(1), torch.min((mels - left) / delta, (left + 2 * delta - mels) / delta))
    banks = torch.nn.functional.pad(banks, (0, 1))
    return torch.mm(spectrum, banks.T).clamp(min=torch.finfo(torch.float32).eps).log()


@pytest.mark.parametrize(("bands", "low"), [(80, 20.0), (40, 0.0), (128, 20.0)])
def test_energies_are_torchaudios(bands: int, low: float) -> None:
    step = KaldiFbank(bands=bands, low=low)
    made = step.apply(WAVES)
    assert made.shape == (2, 48, bands)
    assert output_of([step], TensorSpec("a", "float32", (2, 8000))).shape == made.shape
    for clip, got in zip(WAVES, made, strict=True):
        wanted = torchaudio_fbank(torch.from_numpy(clip).double() * 32768, bands, 16000, low).numpy()
        assert np.abs(got - wanted).max() < 1e-4


def test_one_matrix_does_all_that_is_linear() -> None:
    step, frame = KaldiFbank(), WAVES[0, :400].astype(np.float64)
    centred = (frame - frame.mean()) * 32768
    emphasised = centred - 0.97 * np.concatenate([centred[:1], centred[:-1]])
    wanted = np.fft.rfft(emphasised * np.hanning(400) ** 0.85, 512)
    got = step.basis() @ frame
    assert np.abs(got[0] + 1j * got[1] - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_silence_is_the_smallest_energy() -> None:
    made = KaldiFbank().apply(np.full((1, 1600), 0.5, np.float32))
    assert np.allclose(made, math.log(np.finfo(np.float32).eps), atol=1e-4)


def test_options_and_lengths_are_checked() -> None:
    with pytest.raises(RecipeError, match="at most 4000 Hz, half of the rate"):
        parse([{"kaldi_fbank": {"rate": 8000, "high": 7600.0}}])
    with pytest.raises(DataError, match="at least 400 samples"):
        output_of([KaldiFbank()], TensorSpec("a", "float32", ("batch", 399)))
    with pytest.raises(DataError, match="at least 400 samples"):
        KaldiFbank().apply(WAVES[:, :300])
    assert output_of([KaldiFbank()], TensorSpec("a", "float32", ("batch", "n"))).shape == ("batch", "a_frames", 80)
    steps = parse([{"kaldi_fbank": {"layout": "mel_time"}}])
    assert parse(to_json(steps)) == steps
