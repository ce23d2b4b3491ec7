"""Gates that close on noise: the data, and the recipe trained a little and converted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes import metrics
from recipes.models import gated


def test_gates_say_how_much_of_each_is_let_through() -> None:
    model = gated.build()
    torch.nn.init.zeros_(model.gate.weight)
    with torch.no_grad():
        model.gate.bias.copy_(torch.tensor([-100.0, 100.0]))  # shut for the image, open for the audio
        image, audio = torch.randn(3, 1, 28, 28), torch.randn(3, 1, 40, 50)
        one, other = model(image, audio), model(torch.randn_like(image), audio)
        louder = model(image, 2 * audio)
    torch.testing.assert_close(one["logits"], other["logits"])
    assert not torch.allclose(one["logits"], louder["logits"])
    torch.testing.assert_close(one["gates"], torch.tensor([[0.0, 1.0]] * 3))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("gated", tmp_path_factory.mktemp("gated"))


@pytest.mark.slow
def test_a_third_of_the_samples_each_is_noise_of_one_modality(converted: Converted) -> None:
    for shard in ("calib.npz", "eval.npz"):
        data = converted.samples(shard)
        condition = data["label"][:, 1]
        assert np.bincount(condition).tolist() == [22, 21, 21]
        contrast = data["image"].std((1, 2, 3))
        assert contrast[condition == 1].max() < np.median(contrast[condition != 1])
        assert len({sample.tobytes() for sample in data["audio"]}) == 64


@pytest.mark.slow
def test_bundle_gives_answer_and_gates_as_the_model_does(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "audio")}
    expected = converted.source(feed)
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    assert {name: rows.shape for name, rows in given.items()} == {"logits": (64, 10), "gates": (64, 2)}
    assert np.abs(given["gates"] - expected["gates"]).max() < 0.1
    score = metrics.digit_accuracy(given, data["label"])
    assert score == pytest.approx(converted.accuracy["variant"], abs=0.05)
    assert converted.accuracy["drop"] <= 0.01
