"""Camera, radar and message: what the scenes promise, and two fusion stages in the bundle."""

from __future__ import annotations

import numpy as np
import pytest
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.datasets import camera_radar_text as dataset
from recipes.models import camera_radar_text as reference


def test_no_two_modalities_are_enough() -> None:
    """The best answer without one of site, kind and motion, where every action is as frequent."""
    share = 1 / len(dataset.ACTIONS) / np.bincount(dataset.RULES.ravel())[dataset.RULES]
    for axis in range(3):
        best = np.stack([(share * (a == dataset.RULES)).sum(axis) for a in range(len(dataset.ACTIONS))]).max(0)
        assert best.sum() < 0.65


def test_messages_for_evaluation_are_not_trained_on_and_every_word_of_a_site_is_known() -> None:
    assert not set(dataset.FRAMES[: dataset.TRAINED_FRAMES]) & set(dataset.FRAMES[dataset.TRAINED_FRAMES :])
    assert len(dataset.WORDS) <= reference.VOCABULARY
    for site in dataset.SITES:
        assert 1 not in dataset.tokens_of(" ".join(site))
    assert dataset.tokens_of("zebra town").tolist()[:2] == [1, dataset.WORDS.index("town")]
    assert all(len(frame.split()) <= dataset.LENGTH for frame in dataset.FRAMES)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("camera_radar_text", tmp_path_factory.mktemp("camera_radar_text"))


@pytest.mark.slow
def test_three_encoders_and_two_fusion_stages(converted: Converted) -> None:
    assert converted.modalities == {"camera": "camera", "radar": "radar", "tokens": "text"}
    assert converted.roles == {
        frozenset({"camera"}): "encoder",
        frozenset({"radar"}): "encoder",
        frozenset({"text"}): "encoder",
        frozenset({"camera", "radar"}): "fusion head",
        frozenset({"camera", "radar", "text"}): "fusion head",
    }


@pytest.mark.slow
def test_bundle_says_what_the_model_says(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in reference.INPUTS}
    expected = converted.source(feed)["logits"]
    with open_session(converted.bundle) as session:
        given = session.run(feed)["logits"]
    assert np.abs(given - expected).max() < 0.1 * np.abs(expected).max()
    assert converted.accuracy["drop"] <= converted.accuracy["budget"]
