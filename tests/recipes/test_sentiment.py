"""Two experts on a mood: what prosody measures, and the recipe trained a little and converted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.datasets import speech, tweet_speech
from recipes.models import sentiment


def test_prosody_hears_pitch_loudness_and_silence() -> None:
    time = np.arange(speech.SAMPLE_RATE) / speech.SAMPLE_RATE
    waves = [np.sign(np.sin(2 * np.pi * hertz * time)).astype(np.float32) for hertz in (100, 300)]
    noise = np.random.default_rng(0).standard_normal(3 * speech.SAMPLE_RATE).astype(np.float32)
    features = tweet_speech.prosody([*waves, noise])
    assert features.shape == (3, 4, 96)
    assert features.dtype == np.float32
    spoken = slice(0, 40)
    np.testing.assert_allclose(features[0, 0, spoken], np.log2(100 / 150), atol=0.03)
    np.testing.assert_allclose(features[1, 0, spoken], np.log2(300 / 150), atol=0.03)
    assert (features[:2, 0, 50:] == 0).all()
    assert (features[:2, 2, 50:] < features[:2, 2, spoken].min() - 1).all()
    assert (features[2, 0] == 0).mean() > 0.95
    assert features[2, 3].mean() > 3 * features[0, 3, spoken].mean()


def test_decisions_are_added_as_log_probabilities() -> None:
    model = sentiment.build()
    with torch.no_grad():
        model.text_weight.zero_()
        model.prosody_weight.fill_(2)
        outputs = model(torch.randint(0, 4000, (5, 32)), torch.randn(5, 4, 96))
    torch.testing.assert_close(outputs["logits"], 2 * outputs["prosody_logits"].log_softmax(1))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("sentiment", tmp_path_factory.mktemp("sentiment"))


@pytest.mark.slow
def test_moods_are_balanced_and_tweets_are_in_one_split(converted: Converted) -> None:
    calib, held = converted.samples("calib.npz"), converted.samples()
    for data in (calib, held):
        assert np.bincount(data["label"]).tolist() == [22, 22, 22]
    known = {row.tobytes() for row in calib["text"] if (row > 1).sum() > 5}
    assert not any(row.tobytes() in known for row in held["text"])


@pytest.mark.slow
def test_bundle_gives_each_decision_and_the_joint_one(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("text", "prosody")}
    expected = converted.source(feed)
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    assert set(given) == {"logits", "text_logits", "prosody_logits"}
    for name, rows in given.items():
        assert rows.shape == (66, 3)
        assert np.abs(rows - expected[name]).max() < 0.15 * np.abs(expected[name]).max()
    assert converted.accuracy["drop"] <= 0.01
    assert (given["logits"].argmax(1) == data["label"]).mean() == pytest.approx(
        converted.accuracy["variant"], abs=0.05
    )
