"""One Transformer for patches and words, trained a little and converted by its recipe."""

from __future__ import annotations

import numpy as np
import pytest
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("transformer_fusion", tmp_path_factory.mktemp("transformer_fusion"))


def test_the_transformer_is_one_fusion_stage_that_holds_most_nodes(converted: Converted) -> None:
    assert converted.modalities == {"image": "image", "text": "text"}
    stages = {frozenset(s["modalities"]): s for s in converted.result["stages"]}
    fused = stages[frozenset({"image", "text"})]
    assert fused["role"] == "fusion head"
    assert fused["nodes"] > sum(s["nodes"] for s in stages.values()) / 2


def test_bundle_says_what_the_model_says_and_is_scored(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "text")}
    expected = converted.source(feed)["logits"]
    with open_session(converted.bundle) as session:
        given = session.run(feed)["logits"]
    assert given.shape == expected.shape == (64, 20)
    assert np.abs(given - expected).max() < 0.15 * np.abs(expected).max()
    assert converted.accuracy["samples"] == 64
    assert converted.accuracy["drop"] <= 0.01
