"""The builders of data and demo: splits that share nothing, speech that repeats, a demo that ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from real_models import ROOT, edgemm, load

pytestmark = pytest.mark.slow


def test_speech_is_the_same_in_every_call() -> None:
    from recipes.datasets import speech

    lines = [speech.Utterance("seven", voice, speed=200) for voice in ("f2", "whisper", "m1")]
    first, second = speech.synthesize(lines), speech.synthesize(lines)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(0.1 < len(wave) / speech.SAMPLE_RATE < 1.5 for wave in first)


def test_unknown_voice_is_named() -> None:
    from recipes.datasets import speech

    with pytest.raises(RuntimeError, match="no voice variant 'nobody'"):
        speech.synthesize([speech.Utterance("seven", "nobody")])


def test_related_voices_are_one_family() -> None:
    from recipes.datasets import speech

    families = speech.voice_families()
    voices = [v for family in families for v in family]
    assert len(voices) == len(set(voices)) > 80
    assert ("anika", "anikaRobot") in families
    assert ("f1",) in families


def test_log_mel_of_a_tone_peaks_in_its_band() -> None:
    from recipes.datasets.logmel import htk_filters, log_mel, slaney_filters

    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)[None]
    for filters in (htk_filters(40, 512, 16000), slaney_filters(40, 512, 16000)):
        mel = log_mel(tone, filters, np.hanning(400), hop=160, floor=1e-6)
        assert mel.shape == (1, 40, 100)
        assert mel.dtype == np.float32
        band = int(mel[0, :, 50].argmax())
        assert abs(np.fft.rfftfreq(512, 1 / 16000)[filters[band].argmax()] - 1000) < 150


def test_pairs_agree_and_repeat() -> None:
    from recipes.datasets import av_digits

    options = av_digits.Options(pairs=(30, 20, 20), images=(60, 40, 40), seed=7)
    first, second = av_digits._build(options), av_digits._build(options)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["train_audio"].shape == (30, 1, 40, 50)
    assert not {i.tobytes() for i in first["train_image"]} & {i.tobytes() for i in first["eval_image"]}


def test_neither_modality_alone_reaches_both() -> None:
    from benchmarks.fixtures import build
    from recipes.models import av_digits

    fixture = build("av_digits")
    model = av_digits.build()
    model.load_state_dict(torch.load(fixture.model.with_suffix(".pt"), weights_only=True))
    data = {name: torch.from_numpy(array) for name, array in load(fixture.eval).items()}
    both = av_digits.accuracy(model, data)
    assert len(data["label"]) >= 1000
    assert 0.95 <= both <= 0.99
    assert av_digits.accuracy(model, data, without="image") < both - 0.05
    assert av_digits.accuracy(model, data, without="audio") < both - 0.05


def test_training_repeats() -> None:
    from recipes.datasets import imu
    from recipes.models import imu as model_of

    data = {name: torch.from_numpy(array) for name, array in imu.load("TRAIN").items()}
    first, second = model_of.build(), model_of.build()
    for model in (first, second):
        model_of.train(model, data, epochs=2)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_reviews_share_no_text_between_splits() -> None:
    from recipes.datasets import reviews
    from recipes.models.review_image import minilm_folder

    splits = reviews.load(minilm_folder() / "tokenizer.json")
    texts = {split: {ids.tobytes() for ids in arrays["input_ids"]} for split, arrays in splits.items()}
    assert not texts["calib"] & texts["eval"]
    assert not texts["train"] & texts["eval"]
    assert all(set(np.unique(a["label"])) == set(range(20)) for a in splits.values())


@pytest.mark.parametrize("name", ["imu", "review_image"])
def test_recipe_files_convert(tmp_path: Path, name: str) -> None:
    from benchmarks.fixtures import build

    build(name)
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    done = edgemm("convert", recipe, "-o", str(tmp_path / "out.edgemm"), "--precision", "fp32", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(1800)
def test_demo_ends_well(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "recipes.demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "build" / "demo"
    assert {"model.pt2", "model.pt", "calib.npz", "eval.npz", "av_digits.edgemm"} <= {
        p.name for p in folder.iterdir()
    }
    assert "held-out pairs" in done.stdout
    assert str(Path("build/demo/av_digits.edgemm")) in done.stdout
