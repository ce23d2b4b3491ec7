"""The steps for sound against scipy, torch's own STFT, and the formulas of torchaudio and librosa written out."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch

from edgemm.errors import DataError, RecipeError
from edgemm.preprocess import output_of, parse, run, to_json
from edgemm.preprocess.audio import FitLength, Mono, NormalizeClip, Pcm, PreEmphasis, Resample
from edgemm.preprocess.audio_features import LogMel, Mfcc
from edgemm.preprocess.front import InputSteps
from edgemm.preprocess.kaldi import KaldiFbank
from edgemm.preprocess.spectrum import dct, hertz_to_mel, mel_filters, mel_to_hertz, padded_window, window
from edgemm.tensors import TensorSpec

RATE = 16000


def speechlike(samples: int = 8000, clips: int = 2) -> np.ndarray:
    """A gliding tone with overtones in noise, [clips, samples] float32."""
    rng = np.random.default_rng(7)
    phase = 2 * np.pi * np.cumsum(np.linspace(120, 240, samples)) / RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.1 * tone + 0.02 * rng.standard_normal((clips, samples))).astype(np.float32)


def torchaudio_resample(wave: torch.Tensor, source: int, rate: int) -> torch.Tensor:
    """torchaudio.functional.resample with its defaults, as published (`_get_sinc_resample_kernel`)."""
    divisor = math.gcd(source, rate)
    orig, new = source // divisor, rate // divisor
    lowpass_filter_width, rolloff = 6, 0.99
    base_freq = min(orig, new) * rolloff
    width = math.ceil(lowpass_filter_width * orig / base_freq)
    idx = torch.arange(-width, width + orig, dtype=torch.float64)[None, None] / orig
    t = torch.arange(0, -new, -1, dtype=torch.float64)[:, None, None] / new + idx
    t = (t * base_freq).clamp_(-lowpass_filter_width, lowpass_filter_width)
    hann = torch.cos(t * math.pi / lowpass_filter_width / 2) ** 2
    t *= math.pi
    kernels = torch.where(t == 0, torch.tensor(1.0, dtype=t.dtype), t.sin() / t) * hann * (base_freq / orig)
    padded = torch.nn.functional.pad(wave, (width, width + orig))
    resampled = torch.nn.functional.conv1d(padded[:, None], kernels.to(wave.dtype), stride=orig)
    resampled = resampled.transpose(1, 2).reshape(wave.shape[0], -1)
    return resampled[..., : math.ceil(new * wave.shape[-1] / orig)]


def torchaudio_filters(n_freqs: int, f_max: float, n_mels: int, rate: int, mel_scale: str, norm: str | None):
    """torchaudio.functional.melscale_fbanks, as published, [n_freqs, n_mels]."""

    def to_mel(freq: float) -> float:
        if mel_scale == "htk":
            return 2595.0 * math.log10(1.0 + freq / 700.0)
        f_sp, logstep = 200.0 / 3, math.log(6.4) / 27.0
        return 1000.0 / f_sp + math.log(freq / 1000.0) / logstep if freq >= 1000.0 else freq / f_sp

    def to_hz(mels: torch.Tensor) -> torch.Tensor:
        if mel_scale == "htk":
            return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
        f_sp, logstep = 200.0 / 3, math.log(6.4) / 27.0
        freqs, log_t = f_sp * mels, mels >= 1000.0 / f_sp
        freqs[log_t] = 1000.0 * torch.exp(logstep * (mels[log_t] - 1000.0 / f_sp))
        return freqs

    all_freqs = torch.linspace(0, rate // 2, n_freqs, dtype=torch.float64)
    f_pts = to_hz(torch.linspace(to_mel(0.0), to_mel(f_max), n_mels + 2, dtype=torch.float64))
    f_diff = f_pts[1:] - f_pts[:-1]
    slopes = f_pts[None] - all_freqs[:, None]
    fb = torch.clamp(torch.min(-slopes[:, :-2] / f_diff[:-1], slopes[:, 2:] / f_diff[1:]), min=0)
    return fb * (2.0 / (f_pts[2:] - f_pts[:-2]))[None] if norm == "slaney" else fb


def torchaudio_mel(wave: torch.Tensor, step: LogMel) -> torch.Tensor:
    """torchaudio.transforms.MelSpectrogram: torch.stft, squared, times the filters."""
    size = step.window_size or step.fft
    spectra = torch.stft(
        wave,
        step.fft,
        step.hop,
        size,
        torch.hann_window(size, dtype=wave.dtype),
        pad_mode="reflect",
        return_complex=True,
    )
    filters = torchaudio_filters(
        step.fft // 2 + 1, step.rate / 2, step.bands, step.rate, step.scale, "slaney" if step.equal_area else None
    )
    return (spectra.abs() ** 2).transpose(1, 2).matmul(filters).transpose(1, 2)


def decibels(power: torch.Tensor, top_db: float) -> torch.Tensor:
    """torchaudio.functional.amplitude_to_DB of energies; the limit is each clip's own."""
    levels = 10 * torch.log10(power.clamp(min=1e-10))
    return torch.max(levels, levels.amax(dim=(1, 2), keepdim=True) - top_db)


@pytest.mark.parametrize("kind", ["hann", "hamming", "blackman"])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows_are_those_of_scipy(kind: str, periodic: bool) -> None:
    wanted = scipy.signal.get_window(kind, 400, fftbins=periodic)
    assert np.abs(window(kind, 400, periodic=periodic) - wanted).max() < 1e-12


def test_the_povey_window_is_kaldis() -> None:
    wanted = [(0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i in range(400)]
    assert np.abs(window("povey", 400) - wanted).max() < 1e-12
    assert window("rectangular", 5).tolist() == [1] * 5
    assert padded_window("rectangular", 2, 6).tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize(("fft", "bands", "rate"), [(400, 80, 16000), (2048, 128, 22050)])
def test_mel_filters_are_torchaudios(scale: str, norm: str | None, fft: int, bands: int, rate: int) -> None:
    got = mel_filters(bands, fft, rate, (0, rate / 2), scale=scale, equal_area=norm is not None)
    wanted = torchaudio_filters(fft // 2 + 1, rate / 2, bands, rate, scale, norm).T.numpy()
    assert np.abs(got - wanted).max() < 1e-9 * wanted.max()


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mels_and_hertz_are_inverse(scale: str) -> None:
    hertz = np.array([0.0, 20, 440, 999.9, 1000, 4000, 11025])
    assert np.abs(mel_to_hertz(hertz_to_mel(hertz, scale), scale) - hertz).max() < 1e-8
    assert hertz_to_mel(np.array([1000.0]), scale)[0] == pytest.approx(
        15 if scale == "slaney" else 999.99, abs=0.01
    )


def test_the_dct_is_scipys() -> None:
    logs = np.random.default_rng(0).normal(size=(40, 7))
    assert np.abs(dct(13, 40) @ logs - scipy.fft.dct(logs, axis=0, norm="ortho")[:13]).max() < 1e-12


@pytest.mark.parametrize(
    ("source", "rate"), [(48000, 16000), (44100, 16000), (22050, 16000), (8000, 16000), (16000, 22050)]
)
def test_resampling_is_torchaudios(source: int, rate: int) -> None:
    wave = speechlike(5001)
    got = Resample(source, rate).apply(wave)
    wanted = torchaudio_resample(torch.from_numpy(wave).double(), source, rate).numpy()
    assert got.shape == wanted.shape == (2, math.ceil(5001 * rate / source))
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 2e-6 * np.abs(wanted).max()


def test_resampling_keeps_a_tone_and_removes_what_would_fold_back() -> None:
    times = np.arange(24000) / 48000
    low = np.sin(2 * np.pi * 1000 * times, dtype=np.float32)[None]
    high = np.sin(2 * np.pi * 11000 * times, dtype=np.float32)[None]
    resampled = Resample(48000, 16000).apply(low)[0, 200:-200]
    assert np.abs(resampled - np.sin(2 * np.pi * 1000 * (np.arange(8000) / 16000))[200:-200]).max() < 5e-3
    assert np.abs(Resample(48000, 16000).apply(high)[0, 200:-200]).max() < 1e-2
    polyphase = scipy.signal.resample_poly(low[0], 1, 3)[200:-200]
    assert np.abs(resampled - polyphase).max() < 1e-2  # another filter, the same sound


def test_the_same_rate_changes_nothing() -> None:
    wave = speechlike(100)
    spec = TensorSpec("audio", "float32", ("batch", "samples"))
    assert np.array_equal(Resample(16000, 16000).apply(wave), wave)
    assert Resample(16000, 16000).output(spec) == spec


@pytest.mark.parametrize(("scale", "equal_area"), [("slaney", True), ("htk", False)])
@pytest.mark.parametrize("window_size", [None, 320])
def test_log_mel_is_torchaudios(scale: str, equal_area: bool, window_size: int | None) -> None:
    step = LogMel(RATE, 40, 400, 160, scale=scale, equal_area=equal_area, window_size=window_size, floor=1e-8)
    wave = speechlike()
    got = step.apply(wave)
    wanted = torch.log(torchaudio_mel(torch.from_numpy(wave).double(), step).clamp(min=1e-8)).numpy()
    assert got.shape == wanted.shape == (2, 40, 51)
    assert np.abs(got - wanted).max() < 1e-4


def test_mfcc_is_torchaudios() -> None:
    step = Mfcc(RATE, 40, 400, 160, coefficients=13, scale="htk", equal_area=False)
    wave = speechlike()
    levels = decibels(torchaudio_mel(torch.from_numpy(wave).double(), step), 80).numpy()
    wanted = scipy.fft.dct(levels, axis=1, norm="ortho")[:, :13]
    assert np.abs(step.apply(wave) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_lifter_weighs_the_coefficients() -> None:
    plain, liftered = (Mfcc(RATE, 40, 400, 160, coefficients=13, lifter=s).apply(speechlike()) for s in (0, 22))
    weights = [1 + 22 / 2 * math.sin(math.pi * (k + 1) / 22) for k in range(13)]
    assert np.allclose(liftered, plain * np.array(weights)[:, None], rtol=1e-4, atol=1e-3)


def test_units_are_one_another_times_a_constant() -> None:
    wave = speechlike()
    natural, tens, decibel, linear = (
        LogMel(RATE, 40, 400, 160, unit=u).apply(wave).astype(np.float64) for u in ("ln", "log10", "db", "none")
    )
    assert np.allclose(natural, tens * math.log(10), rtol=1e-5)
    assert np.allclose(decibel, tens * 10, rtol=1e-5)
    assert np.allclose(np.log10(linear), tens, atol=1e-5)
    magnitudes = LogMel(RATE, 40, 400, 160, power=1, unit="db").apply(wave)
    assert np.allclose(
        magnitudes, 20 * np.log10(LogMel(RATE, 40, 400, 160, power=1, unit="none").apply(wave)), atol=1e-3
    )


def test_nothing_is_further_below_the_loudest_than_range_db_of_its_own_clip() -> None:
    wave = speechlike()
    wave[1] *= 1e-3
    levels = LogMel(RATE, 40, 400, 160, unit="db", range_db=30).apply(wave)
    for clip in levels:
        assert clip.max() - clip.min() == pytest.approx(30, abs=1e-3)
    decades = LogMel(RATE, 40, 400, 160, unit="log10", range_db=30).apply(wave)
    assert np.allclose(decades * 10, levels, atol=1e-3)


def test_a_clip_has_the_same_features_alone_and_in_a_batch() -> None:
    wave = speechlike(clips=3)
    for step in (LogMel(RATE, 40, 400, 160, unit="db", range_db=80), Resample(RATE, 11025), NormalizeClip()):
        together = step.apply(wave)
        alone = np.concatenate([step.apply(w[None]) for w in wave])
        assert np.abs(together - alone).max() <= 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("mel_time", ("batch", 40, 51)),
        ("time_mel", ("batch", 51, 40)),
        ("channel_mel_time", ("batch", 1, 40, 51)),
        ("channel_time_mel", ("batch", 1, 51, 40)),
    ],
)
def test_layouts(layout: str, shape: tuple) -> None:
    step = LogMel(RATE, 40, 400, 160, layout=layout)
    made = step.apply(speechlike())
    assert step.output(TensorSpec("audio", "float32", ("batch", 8000))).shape == shape
    assert made.shape == (2, *shape[1:])
    plain = LogMel(RATE, 40, 400, 160).apply(speechlike())
    assert np.array_equal(
        made.reshape(-1), (plain if layout.endswith("mel_time") else plain.transpose(0, 2, 1)).reshape(-1)
    )


@pytest.mark.parametrize("samples", [8000, 8001, 8159, 8160])
@pytest.mark.parametrize("centre", ["reflect", "zero", "none"])
@pytest.mark.parametrize("drop_last", [True, False])
def test_output_promises_what_apply_gives(samples: int, centre: str, drop_last: bool) -> None:
    steps = (
        Pcm(),
        PreEmphasis(),
        Resample(RATE, 11025),
        LogMel(11025, 32, 256, 110, centre=centre, drop_last=drop_last),
        NormalizeClip(axis=2),
    )
    raw = (speechlike(samples) * 20000).astype(np.int16)
    made = run(steps, raw)
    assert output_of(steps, TensorSpec("audio", "int16", (2, samples))).shape == made.shape
    assert made.dtype == np.float32
    symbolic = output_of(steps, TensorSpec("audio", "int16", ("batch", "samples"))).shape
    assert symbolic == ("batch", 32, "audio_frames")


def test_pcm_of_every_width() -> None:
    assert Pcm().apply(np.array([[-32768, 0, 16384]], np.int16)).tolist() == [[-1, 0, 0.5]]
    assert Pcm().apply(np.array([[0, 128, 192]], np.uint8)).tolist() == [[-1, 0, 0.5]]
    assert Pcm().apply(np.array([[-(1 << 31), 1 << 30]], np.int32)).tolist() == [[-1, 0.5]]
    assert Pcm(bits=24).apply(np.array([[-(1 << 23), 1 << 22]], np.int32)).tolist() == [[-1, 0.5]]
    sixteen = np.array([[-32768, 77, 32767]], np.int16)
    assert np.array_equal(Pcm(bits=16).apply(sixteen.astype(np.int32)), Pcm().apply(sixteen))


def test_channels_are_averaged_and_lengths_fitted() -> None:
    stereo = np.array([[[1, 3], [2, 4], [0, 8]]], np.float32)
    assert Mono().apply(stereo).tolist() == [[2, 3, 4]]
    wave = Mono().apply(stereo)
    assert FitLength(2).apply(wave).tolist() == [[2, 3]]
    assert FitLength(2, keep="end").apply(wave).tolist() == [[3, 4]]
    assert FitLength(5).apply(wave).tolist() == [[2, 3, 4, 0, 0]]
    assert FitLength(5, keep="end").apply(wave).tolist() == [[0, 0, 2, 3, 4]]


def test_pre_emphasis_is_a_filter() -> None:
    wave = speechlike(50)
    assert np.allclose(PreEmphasis(0.95).apply(wave), scipy.signal.lfilter([1, -0.95], [1], wave), atol=1e-6)


def test_clips_are_normalized() -> None:
    wave = speechlike() + np.float32(0.3)
    even = NormalizeClip().apply(wave)
    assert np.abs(even.mean(axis=1)).max() < 1e-5
    assert even.std(axis=1) == pytest.approx([1, 1], abs=1e-4)
    assert np.abs(NormalizeClip(by="peak").apply(wave)).max(axis=1) == pytest.approx([1, 1], abs=1e-5)
    rms = np.sqrt((NormalizeClip(by="rms").apply(wave) ** 2).mean(axis=1))
    assert rms == pytest.approx([1, 1], abs=1e-4)
    bands = NormalizeClip(by="mean", axis=2).apply(LogMel(RATE, 40, 400, 160).apply(wave))
    assert np.abs(bands.mean(axis=2)).max() < 1e-5
    assert np.isfinite(NormalizeClip().apply(np.zeros((1, 9), np.float32))).all()


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([{"resample": {"source": 0, "rate": 16000}}], "source is 0, expected at least 1 Hz"),
        (
            [{"log_mel": {"rate": 16000, "bands": 40, "fft": 401, "hop": 160}}],
            "fft is 401, expected an even number",
        ),
        ([{"log_mel": {"rate": 16000, "bands": 40, "fft": 400, "hop": 160, "high": 9000}}], "at most 8000 Hz"),
        ([{"log_mel": {"rate": 16000, "bands": 40, "fft": 400, "hop": 160, "window_size": 512}}], "2 to 400"),
        ([{"log_mel": {"rate": 16000, "bands": 40, "fft": 400, "hop": 160, "scale": "bark"}}], "slaney or htk"),
        (
            [{"mfcc": {"rate": 16000, "bands": 40, "fft": 400, "hop": 160, "coefficients": 41}}],
            "1 to 40, the bands",
        ),
        ([{"normalize_clip": {"axis": 0}}], "axis 0 is the batch"),
        ([{"log_mel": {"rate": 16000, "bands": 40, "hop": 160}}], "the option 'fft' is missing"),
    ],
)
def test_options_are_checked(items: list, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse(items)


def test_json_keeps_every_option() -> None:
    steps = parse(
        [
            {"resample": {"source": 48000, "rate": 16000}},
            {"mfcc": {"rate": 16000, "bands": 40, "fft": 400, "hop": 160}},
        ]
    )
    assert parse(to_json(steps)) == steps


@pytest.mark.parametrize(
    ("step", "spec", "said"),
    [
        (Pcm(), TensorSpec("a", "float32", ("batch", 9)), "expected samples of uint8"),
        (Pcm(bits=24), TensorSpec("a", "int16", ("batch", 9)), "expected samples of 24 bits"),
        (Mono(), TensorSpec("a", "float32", ("batch", 9)), r"\[batch, samples, channels\]"),
        (Resample(48000, 16000), TensorSpec("a", "int16", ("batch", 9)), "float32 waves"),
        (LogMel(RATE, 40, 400, 160), TensorSpec("a", "float32", ("batch", 200)), "at least 201 samples"),
        (LogMel(RATE, 40, 400, 160, centre="none"), TensorSpec("a", "float32", ("batch", 399)), "at least 400"),
        (NormalizeClip(axis=2), TensorSpec("a", "float32", ("batch", 9)), "with an axis 2"),
    ],
)
def test_what_does_not_fit_is_refused(step: object, spec: TensorSpec, said: str) -> None:
    with pytest.raises(DataError, match=said):
        output_of([step], spec)


def test_a_clip_that_is_too_short_is_refused_when_it_comes() -> None:
    with pytest.raises(DataError, match="at least 201 samples"):
        LogMel(RATE, 40, 400, 160).apply(speechlike(150))


@pytest.mark.parametrize("step", [LogMel(RATE, 40, 400, 160), KaldiFbank(RATE)])
def test_a_clip_that_is_too_short_is_refused_under_the_name_of_its_input(step: LogMel | KaldiFbank) -> None:
    with pytest.raises(DataError, match=r"^the step '"):
        step.apply(speechlike(150))
    way = InputSteps("features", TensorSpec("mic", "float32", ("batch", "samples")), (step,))
    for make in (lambda: way.make(speechlike(150)), lambda: way.row(speechlike(150)[0])):
        with pytest.raises(DataError, match=r"^input 'mic': the step '.*expected at least") as caught:
            make()
        assert "fit_length" in caught.value.hint
