"""The steps for sound and text against the libraries that people use: librosa, transformers, tokenizers."""

from pathlib import Path

import numpy as np
import pytest

from edgemm.preprocess import run
from edgemm.preprocess.audio import PreEmphasis, Resample
from edgemm.preprocess.audio_features import LogMel, Mfcc
from edgemm.preprocess.kaldi import KaldiFbank
from edgemm.preprocess.text import Tokenize

pytestmark = pytest.mark.slow
RATE = 16000


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    """Three spoken words at 16 kHz, of one length, [3, 16000] float32."""
    from recipes.datasets import speech

    said = speech.synthesize([speech.Utterance(w, "f1") for w in ("seven", "zero", "camera")])
    waves = [np.pad(w[:RATE], (0, max(0, RATE - len(w)))) for w in said]
    noise = np.random.default_rng(0).normal(0, 1e-3, (3, RATE))
    return (np.stack(waves) + noise).astype(np.float32)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("power", [1, 2])
def test_log_mel_is_librosas(words: np.ndarray, scale: str, power: int) -> None:
    librosa = pytest.importorskip("librosa")
    step = LogMel(RATE, 64, 512, 160, window_size=400, scale=scale, power=power, unit="db", range_db=80)
    made = step.apply(words)
    for clip, got in zip(words, made, strict=True):
        mel = librosa.feature.melspectrogram(
            y=clip.astype(np.float64),
            sr=RATE,
            n_fft=512,
            hop_length=160,
            win_length=400,
            n_mels=64,
            htk=scale == "htk",
            power=power,
            pad_mode="reflect",
        )
        to_db = librosa.power_to_db if power == 2 else librosa.amplitude_to_db
        wanted = to_db(mel, ref=1.0, amin=1e-10, top_db=80)
        assert np.abs(got - wanted).max() < 1e-3  # dB


def test_mfcc_is_librosas(words: np.ndarray) -> None:
    librosa = pytest.importorskip("librosa")
    made = Mfcc(RATE, 128, 2048, 512, coefficients=20, centre="zero", lifter=22).apply(words)
    for clip, got in zip(words, made, strict=True):
        wanted = librosa.feature.mfcc(y=clip.astype(np.float64), sr=RATE, n_mfcc=20, lifter=22)
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_pre_emphasis_is_librosas_but_for_the_first_sample(words: np.ndarray) -> None:
    librosa = pytest.importorskip("librosa")
    wanted = librosa.effects.preemphasis(words)
    assert np.abs(PreEmphasis(0.97).apply(words) - wanted)[:, 1:].max() < 1e-6


def test_resampling_sounds_as_soxr_does(words: np.ndarray) -> None:
    soxr = pytest.importorskip("soxr")
    made = Resample(RATE, 8000, zeros=64, rolloff=0.95).apply(words)
    for clip, got in zip(words, made, strict=True):
        wanted = soxr.resample(clip, RATE, 8000, quality="HQ")
        error = np.abs(np.fft.rfft(got - wanted)[: int(0.85 * 4000)])  # below where the two filters differ
        assert 20 * np.log10(error.max() / np.abs(np.fft.rfft(wanted)).max()) < -45


def test_log_mel_is_whispers(words: np.ndarray) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor()
    wanted = extractor(list(words), sampling_rate=RATE, padding="max_length", return_tensors="np").input_features
    steps = (LogMel(RATE, 80, 400, 160, drop_last=True, unit="log10", range_db=80),)
    padded = np.pad(words, ((0, 0), (0, 29 * RATE)))
    made = (run(steps, padded) + 4) / 4
    assert made.shape == wanted.shape == (3, 80, 3000)
    assert np.abs(made - wanted).max() < 1e-4


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning")  # as AST has it
def test_kaldis_filter_banks_are_those_of_the_audio_spectrogram_transformer(words: np.ndarray) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ASTFeatureExtractor(max_length=98, do_normalize=False)
    wanted = extractor(list(words), sampling_rate=RATE, return_tensors="np").input_values
    made = KaldiFbank(bands=128, gain=1.0, window="hann").apply(words)
    assert made.shape == wanted.shape == (3, 98, 128)
    assert np.abs(made - wanted).max() < 1e-3


def test_tokens_of_minilm_are_those_of_its_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    from recipes.models import review_image

    folder: Path = review_image.minilm_folder()
    texts = ["I love this cup!", "naïve café 茶", "", "word " * 99, "don't @you http://a.b/c"]
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]"
    )
    wanted = library(
        texts,
        max_length=32,
        truncation=True,
        padding="max_length",
        return_tensors="np",
        return_token_type_ids=True,
    )
    for give in ("input_ids", "attention_mask", "token_type_ids"):
        made = Tokenize(folder / "tokenizer.json", 32, give).apply(np.array(texts))
        assert np.array_equal(made, wanted[give])
