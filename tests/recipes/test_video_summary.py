"""Summaries of films: what makes a frame important, what attends to what, and the way to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes import metrics
from recipes.datasets import shots as dataset
from recipes.models import video_summary

SILENT = dataset.Options(sounds=0.0)


def test_a_digit_that_was_seen_before_is_worth_nothing_without_a_sound() -> None:
    rng = np.random.default_rng(0)
    pixels, digits = rng.random((20, 14, 14), dtype=np.float32), np.arange(20) % 10
    for _ in range(20):
        frames, audio, importance, digit = dataset._film(rng, pixels, digits, SILENT)
        assert frames.shape == (dataset.FRAMES, 1, dataset.SIDE, dataset.SIDE)
        assert audio.shape == (dataset.FRAMES, dataset.BANDS)
        starts = np.flatnonzero(np.diff(digit, prepend=-1))
        for start in starts:
            new = digit[start] not in digit[:start]
            assert importance[start] == pytest.approx(0.6 if new else 0.0)


def test_frames_know_of_earlier_ones_and_of_the_sound() -> None:
    model = video_summary.build()
    frames, audio = torch.randn(2, 24, 1, 24, 24), torch.randn(2, 24, 16)
    changed = frames.clone()
    changed[:, 0] = 0
    with torch.no_grad():
        usual, other, silent = (
            model(f, a) for f, a in ((frames, audio), (changed, audio), (frames, torch.zeros_like(audio)))
        )
    assert usual["importance"].shape == (2, video_summary.FRAMES)
    torch.testing.assert_close(usual["attention"].sum(2), torch.ones(2, 24))
    for changes in (other, silent):
        assert not torch.allclose(usual["importance"][:, -1], changes["importance"][:, -1], atol=1e-5)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("video_summary", tmp_path_factory.mktemp("video_summary"))


@pytest.mark.slow
def test_bundle_gives_importance_and_attention(converted: Converted) -> None:
    assert converted.modalities == {"frames": "video", "audio": "audio"}
    assert converted.roles[frozenset({"video", "audio"})] == "fusion head"
    data = converted.samples()
    assert "digit" not in data
    feed = {name: data[name] for name in ("frames", "audio")}
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    expected = converted.source(feed)
    assert given["importance"].shape == (48, 24)
    np.testing.assert_allclose(given["attention"].sum(2), 1, atol=1e-3)
    assert np.abs(given["importance"] - expected["importance"]).mean() < 0.03
    score = metrics.summary_f1(given, data["importance"])
    assert score == pytest.approx(converted.accuracy["variant"], abs=0.05)
    assert converted.accuracy["metric"].endswith("summary_f1")
