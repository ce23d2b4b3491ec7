"""A sum in learned proportions: what it is, and the way from an image and a review to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.models import weighted_sum


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(1, 8000, (4, 128), generator=generator)


def test_joint_is_the_weighted_sum_of_both(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, text = pair
    model = weighted_sum.build()
    with torch.no_grad():
        model.weights.copy_(torch.tensor([0.25, 3.0]))
        joined = 0.25 * model.text_encoder(text) + 3.0 * model.image_encoder(image)
        assert joined.shape == (4, 128)
        torch.testing.assert_close(model(image, text)["logits"], model.head(joined))


def test_padding_and_order_of_words_change_nothing(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, text = pair
    encoder = weighted_sum.build().text_encoder
    with torch.no_grad():
        short, padded = encoder(text[:, :10]), encoder(torch.cat([text[:, :10].flip(1), 0 * text[:, 10:]], dim=1))
        torch.testing.assert_close(short, padded)
        assert torch.isfinite(encoder(0 * text)).all()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("weighted_sum", tmp_path_factory.mktemp("weighted_sum"), "--search-seconds", "2")


@pytest.mark.slow
def test_bundle_answers_as_the_model_does(converted: Converted) -> None:
    assert converted.modalities == {"image": "image", "text": "text"}
    assert converted.roles == {
        frozenset({"image"}): "encoder",
        frozenset({"text"}): "encoder",
        frozenset({"image", "text"}): "fusion head",
    }
    samples = converted.samples()
    inputs = {name: samples[name] for name in ("image", "text")}
    count = len(samples["label"])
    with open_session(converted.bundle) as session:
        rows = [session.run({n: a[i : i + 1] for n, a in inputs.items()})["logits"] for i in range(count)]
    own = converted.source(inputs)["logits"]
    assert own.shape == (count, 20)
    assert (np.concatenate(rows).argmax(1) == own.argmax(1)).mean() > 0.8
