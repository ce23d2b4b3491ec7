"""Models that take what sensors give, int16 samples of a microphone and text: preprocessing is in the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from real_models import ROOT, edgemm, load, source

from edgemm.runtime import open_session

pytestmark = pytest.mark.slow
PAIRS, TEXTS = 96, 32
LOG_MEL = {
    "rate": 22050,
    "bands": 40,
    "fft": 512,
    "hop": 352,
    "periodic": False,
    "centre": "zero",
    "drop_last": True,
    "low": 60,
    "scale": "htk",
    "equal_area": False,
    "floor": 1e-4,
    "floor_by": "add",
    "layout": "channel_mel_time",
}
"""What recipes/datasets/logmel.py computes for av_digits."""

SOUND = ["pcm", {"log_mel": LOG_MEL}, {"normalize": {"mean": [1.6], "std": [0.9]}}]


def converted(folder: Path, name: str, recipe: dict) -> Path:
    file, bundle = folder / f"{name}.yaml", folder / f"{name}.edgemm"
    file.write_text(yaml.safe_dump(recipe))
    done = edgemm("convert", str(file), "-o", str(bundle), "--json")
    assert done.returncode == 0, done.stderr
    return bundle


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs of av_digits, the sound once as int16 samples and once as the features of recipes/."""
    from recipes.datasets import av_digits, speech
    from recipes.datasets.logmel import htk_filters, log_mel

    folder = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(11)
    kept = load(_fixture("av_digits").eval)
    images, labels = kept["image"][:PAIRS], kept["label"][:PAIRS]
    voices = ["f1", "f3", "m2", "m5"]
    said = speech.synthesize(
        [speech.Utterance(av_digits.WORDS[n], voices[i % len(voices)]) for i, n in enumerate(labels)]
    )
    waves = np.stack([av_digits._mix(rng, wave, 6.0) for wave in said])
    pcm = np.clip(np.rint(waves * 32768), -32768, 32767).astype(np.int16)
    filters = htk_filters(av_digits.BANDS, av_digits.FFT, speech.SAMPLE_RATE)
    heard = pcm.astype(np.float32) / 32768
    mel = log_mel(heard, filters, np.hanning(av_digits.FFT), hop=av_digits.HOP, floor=1e-4)
    features = ((mel - 1.6) / 0.9)[:, None].astype(np.float32)
    np.savez(folder / "raw.npz", image=images, audio=pcm, label=labels)
    np.savez(folder / "made.npz", image=images, audio=features, label=labels)
    return folder


def _fixture(name: str):
    from benchmarks.fixtures import build

    return build(name)


def test_sound_from_a_microphone_gives_the_answers_of_features(spoken: Path) -> None:
    bundles = {}
    for kind, audio in (("made", {}), ("raw", {"preprocess": SOUND, "bake": True})):
        samples = {"calib": str(spoken / f"{kind}.npz"), "eval": str(spoken / f"{kind}.npz"), "label": "label"}
        recipe = {
            "model": {"path": str(_fixture("av_digits").model)},
            "inputs": {"image": {"modality": "image"}, "audio": {"modality": "audio", **audio}},
            "data": samples,
            "quantize": {"precision": "fp32"},
            "engine": "onnxruntime",
            "layout": "staged",
        }
        bundles[kind] = converted(spoken, kind, recipe)
    raw, made = load(spoken / "raw.npz"), load(spoken / "made.npz")
    with open_session(bundles["raw"]) as hears, open_session(bundles["made"]) as reads:
        assert hears.io.input("audio").dtype == "int16"
        assert hears.io.input("audio").shape == ("batch", 50 * 352)
        heard = hears.run({"image": raw["image"], "audio": raw["audio"]})["logits"]
        read = reads.run({"image": made["image"], "audio": made["audio"]})["logits"]
    assert np.abs(heard - read).max() < 1e-4 * np.abs(read).max()
    assert (read.argmax(1) == made["label"]).mean() > 0.9  # the features mean something to the model


def test_a_model_of_text_takes_strings(tmp_path: Path) -> None:
    from recipes.datasets import reviews
    from recipes.models.review_image import minilm_folder

    fixture = _fixture("review_image")
    tokens = load(fixture.eval)
    rng = np.random.default_rng(3)  # as reviews._build draws: the texts behind the tokens of the fixture
    rng.permutation(5000)
    texts, _ = reviews._tweets(rng, sum(reviews.COUNTS.values()))
    texts = np.array(texts[-reviews.COUNTS["eval"] :])[:TEXTS]
    np.savez(tmp_path / "raw.npz", image=tokens["image"][:TEXTS], text=texts, label=tokens["label"][:TEXTS])
    tokenize = {"file": str(minilm_folder() / "tokenizer.json"), "length": reviews.LENGTH}
    recipe = {
        "model": {"path": str(fixture.model)},
        "inputs": {
            "image": {"modality": "image"},
            **{
                name: {
                    "modality": "text",
                    "source": "text",
                    "preprocess": [{"tokenize": {**tokenize, "give": name}}],
                }
                for name in ("input_ids", "attention_mask")
            },
        },
        "data": {"calib": str(tmp_path / "raw.npz"), "eval": str(tmp_path / "raw.npz"), "label": "label"},
        "quantize": {"precision": "fp32"},
        "engine": "onnxruntime",
        "layout": "whole",
    }
    bundle = converted(tmp_path, "review", recipe)
    with open_session(bundle) as session:
        assert session.io.input("text").dtype == "str"
        (read,) = session.run({"image": tokens["image"][:TEXTS], "text": texts}).values()
        with session.stream() as stream:
            stream.push("image", tokens["image"][0])
            stream.push("text", texts[0])
            (one,) = stream.infer().outputs.values()
    feed = {n: tokens[n][:TEXTS] for n in ("image", "input_ids", "attention_mask")}
    (wanted,) = source(fixture)(feed).values()
    assert np.abs(read - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(one - wanted[:1]).max() < 1e-4 * np.abs(wanted).max()
    _without_tokenizers(bundle)
    recipe["inputs"]["input_ids"]["bake"] = True
    (tmp_path / "baked.yaml").write_text(yaml.safe_dump(recipe))
    done = edgemm("convert", str(tmp_path / "baked.yaml"), "-o", str(tmp_path / "baked.edgemm"))
    assert done.returncode == 1
    assert "the step 'tokenize' cannot be computed by a graph" in " ".join(done.stderr.split())


def _without_tokenizers(bundle: Path) -> None:
    """The package that tokenizes is named when the bundle opens, not when the first text comes."""
    code = (
        "import sys, json; sys.modules['tokenizers'] = None\n"
        "from edgemm.errors import MissingExtraError\n"
        "from edgemm.runtime import open_session\n"
        "try: open_session(sys.argv[1])\n"
        "except MissingExtraError as error: print(json.dumps([str(error), error.hint]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    message, hint = json.loads(done.stdout)
    assert "'tokenizers' is needed to turn text into tokens" in message
    assert hint == "pip install 'edgemm[text]'"
