"""The nodes of the steps for sound, run by ONNX Runtime, against the steps in numpy."""

import numpy as np
import onnx
import pytest

from edgemm.preprocess import output_of, run
from edgemm.preprocess.audio import FitLength, Mono, NormalizeClip, Pcm, PreEmphasis, Resample
from edgemm.preprocess.audio_features import LogMel, Mfcc
from edgemm.preprocess.kaldi import KaldiFbank
from edgemm.preprocess.step import Step
from edgemm.tensors import TensorSpec
from tests.bake.step_graph import OPSETS, bake_alone, run_baked

CHAINS: dict[str, tuple[Step, ...]] = {
    "whisper": (
        Pcm(),
        Resample(22050, 16000),
        LogMel(16000, 80, 400, 160, drop_last=True, unit="log10", range_db=80),
    ),
    "av_digits": (
        Pcm(),
        LogMel(
            22050,
            40,
            512,
            352,
            periodic=False,
            centre="zero",
            drop_last=True,
            low=60,
            scale="htk",
            equal_area=False,
            floor=1e-4,
            floor_by="add",
            layout="channel_mel_time",
        ),
    ),
    "mfcc": (
        Pcm(),
        PreEmphasis(),
        Mfcc(22050, 40, 512, 352, coefficients=13, lifter=22, layout="channel_time_mel"),
        NormalizeClip(axis=2),
    ),
    "magnitudes": (
        Pcm(),
        FitLength(9000, "end"),
        LogMel(22050, 64, 512, 352, power=1, unit="db", window_size=400, window="hamming", centre="none"),
        NormalizeClip(by="peak"),
    ),
    "kaldi": (Pcm(), KaldiFbank(22050)),
    "kaldi for AST": (Pcm(), KaldiFbank(22050, 128, layout="channel_mel_time", gain=1.0, window="hann")),
    "linear": (Pcm(), NormalizeClip(), LogMel(22050, 40, 512, 200, unit="none", high=4000, layout="time_mel")),
    "down by a whole number": (Pcm(), Resample(48000, 16000)),
    "up by a whole number": (Pcm(), Resample(22050, 44100)),
    "up by a ratio": (Pcm(), Resample(16000, 22050), NormalizeClip(by="mean")),
    "down by a ratio": (Pcm(), Resample(44100, 16000)),
    "same rate": (Pcm(), Resample(16000, 16000), NormalizeClip(by="rms")),
    "cut": (Pcm(), FitLength(1000)),
    "filled": (Pcm(), FitLength(30000)),
    "last second": (Pcm(), FitLength(4000, "end")),
}


def sound(clips: int, samples: int) -> np.ndarray:
    """Bursts of noise with a tone, int16; the second clip is 60 dB quieter."""
    rng = np.random.default_rng(3)
    tone = np.sin(2 * np.pi * 440 * np.arange(samples) / 22050)
    wave = (tone + 0.3 * rng.standard_normal((clips, samples))) * rng.uniform(0.2, 1, (clips, 1))
    wave[1:2] *= 1e-3
    return (wave / np.abs(wave).max() * 30000).astype(np.int16)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("chain", CHAINS)
def test_the_graph_computes_what_the_steps_do(chain: str, opset: int) -> None:
    steps = CHAINS[chain]
    for samples in (5003, 10560):
        raw = sound(2, samples)
        wanted = run(steps, raw)
        fixed = TensorSpec("audio", "int16", (2, samples))
        assert output_of(steps, fixed).shape == wanted.shape
        for spec in (fixed, TensorSpec("audio", "int16", ("batch", "samples"))):
            got = run_baked(steps, spec, raw, opset)
            assert got.dtype == np.float32
            assert got.shape == wanted.shape
            assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_frames_stay_symbolic_in_the_graph() -> None:
    spec = TensorSpec("audio", "int16", ("batch", "samples"))
    model = onnx.load_from_string(bake_alone(CHAINS["mfcc"], spec))
    (made,) = model.graph.output
    dims = [d.dim_param or d.dim_value for d in made.type.tensor_type.shape.dim]
    assert dims == ["batch", 1, "audio_frames", 13]
    kinds = {n.op_type for n in model.graph.node}
    assert "Conv" in kinds
    assert not kinds & {"STFT", "DFT", "Loop"}


def test_other_integers_and_channels() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int8, np.int32):
        limits = np.iinfo(dtype)
        raw = rng.integers(limits.min, limits.max, (2, 50, 2), dtype)
        steps, spec = (
            (Pcm(bits=24 if dtype is np.int32 else None), Mono()),
            TensorSpec("audio", np.dtype(dtype).name, ("batch", "samples", 2)),
        )
        wanted = run(steps, raw)
        assert wanted.shape == (2, 50)
        assert np.abs(run_baked(steps, spec, raw) - wanted).max() < 1e-6


def test_no_frequency_is_transformed_that_no_filter_sees() -> None:
    spec = TensorSpec("audio", "float32", ("batch", "samples"))
    sizes = {}
    for high in (2000.0, 8000.0):
        model = onnx.load_from_string(bake_alone([LogMel(16000, 20, 512, 160, high=high)], spec))
        sizes[high] = max(i.dims[0] for i in model.graph.initializer if i.dims)
    assert sizes[2000.0] < 140 < 500 < sizes[8000.0]
