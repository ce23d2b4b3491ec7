"""The low-rank bilinear product of an image and a review, trained a little and converted by its recipe."""

from __future__ import annotations

import numpy as np
import pytest
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("bilinear", tmp_path_factory.mktemp("bilinear"))


def test_an_encoder_each_and_one_head(converted: Converted) -> None:
    assert converted.modalities == {"image": "image", "text": "text"}
    assert converted.roles == {
        frozenset({"image"}): "encoder",
        frozenset({"text"}): "encoder",
        frozenset({"image", "text"}): "fusion head",
    }


def test_bundle_says_what_the_model_says_and_is_scored(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "text")}
    expected = converted.source(feed)["logits"]
    with open_session(converted.bundle) as session:
        given = session.run(feed)["logits"]
    assert given.shape == expected.shape == (64, 20)
    assert np.abs(given - expected).max() < 0.15 * np.abs(expected).max()
    assert converted.accuracy["metric"] == "accuracy"
    assert converted.accuracy["samples"] == 64
    assert (given.argmax(1) == data["label"]).mean() == pytest.approx(converted.accuracy["variant"], abs=0.05)
