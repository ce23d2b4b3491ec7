"""Two answers from a CNN and an RNN or an LSTM, trained a little and converted by their recipes."""

from __future__ import annotations

import numpy as np
import pytest
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes import metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["cnn_rnn", "cnn_lstm"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick(request.param, tmp_path_factory.mktemp(request.param))


def test_bundle_gives_both_answers_as_the_model_does_and_is_scored_by_both(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "text")}
    expected = converted.source(feed)
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    assert {name: rows.shape for name, rows in given.items()} == {
        "image_logits": (64, 10),
        "sentiment_logits": (64, 2),
    }
    for name, rows in given.items():
        assert np.abs(rows - expected[name]).max() < 0.15 * np.abs(expected[name]).max()
    score = metrics.heads_accuracy(given, data["label"])
    assert score == pytest.approx(converted.accuracy["variant"], abs=0.05)
    assert converted.accuracy["drop"] <= 0.01


def test_each_modality_has_its_encoder(converted: Converted) -> None:
    assert converted.roles[frozenset({"image"})] == "encoder"
    assert converted.roles[frozenset({"text"})] == "encoder"
    assert "fusion head" in converted.roles.values()
