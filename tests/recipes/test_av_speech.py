"""Spoken digits with a picture: a CNN-GRU keeps what it says on the way to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.models import av_speech


def test_the_order_of_moments_counts_and_silence_does_not_end_in_nan() -> None:
    model = av_speech.build()
    image, audio = torch.zeros(2, 1, 28, 28), torch.randn(2, 1, 40, 50)
    with torch.no_grad():
        logits, backwards, silent = (
            model(image, a)["logits"] for a in (audio, audio.flip(3), torch.zeros_like(audio))
        )
    assert logits.shape == (2, av_speech.CLASSES)
    assert not torch.allclose(logits, backwards, atol=1e-4)
    assert silent.isfinite().all()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("av_speech", tmp_path_factory.mktemp("av_speech"))


@pytest.mark.slow
def test_bundle_says_what_the_model_says(converted: Converted) -> None:
    assert converted.modalities == {"image": "image", "audio": "audio"}
    assert converted.roles[frozenset({"image", "audio"})] == "fusion head"
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "audio")}
    with open_session(converted.bundle) as session:
        given = session.run(feed)["logits"]
    expected = converted.source(feed)["logits"]
    assert np.mean(given.argmax(1) == expected.argmax(1)) > 0.9
    assert converted.accuracy["drop"] <= 0.01
