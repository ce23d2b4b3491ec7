"""Given features side by side: how pairs are drawn, why there is a hidden layer, and the way to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.datasets import number_pairs as dataset
from recipes.models import feature_concat


def test_pairs_are_balanced_and_half_of_them_match() -> None:
    number, digit = np.repeat(np.arange(10), 3), np.tile(np.arange(10), 4)
    texts, images = dataset.pair(np.random.default_rng(0), number, digit, 400)
    assert np.bincount(number[texts]).tolist() == [40] * 10
    assert (number[texts] == digit[images]).sum() == 200


def test_a_text_is_what_stands_around_its_only_number() -> None:
    reviews = [
        "It has <br />two good actors in it",
        "one of two",
        "nothing here",
        "a b c d e f g h seven, i j k l m n o p",
    ]
    assert list(dataset._numbers(reviews)) == [
        ("It has two good actors in it", 2),
        ("c d e f g h seven, i j k l m n", 7),
    ]


def test_image_features_are_standardised_by_the_first_split() -> None:
    rng = np.random.default_rng(0)
    splits = [rng.random((40, 28, 28), np.float32), rng.random((3, 28, 28), np.float32)]
    train, other = dataset._image_features(np.random.default_rng(0), splits)
    assert (train.shape, other.shape, other.dtype) == ((40, 2048), (3, 2048), np.float32)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-3)
    assert train.std(0).max() < 1.001


def test_one_dense_layer_cannot_compare_and_two_can() -> None:
    """Where the logit is a sum, two matches have together what the same texts and images have when swapped."""
    generator = torch.Generator().manual_seed(0)
    text, image = torch.randn(2, 768, generator=generator), torch.randn(2, 2048, generator=generator)
    for hidden, is_sum in ((0, True), (256, False)):
        model = feature_concat.build(hidden)
        with torch.no_grad():
            kept, swapped = model.logit(text, image).sum(), model.logit(text, image.flip(0)).sum()
        assert torch.isclose(kept, swapped, atol=1e-5) == is_sum


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("feature_concat", tmp_path_factory.mktemp("feature_concat"), "--search-seconds", "2")


@pytest.mark.slow
def test_bundle_answers_as_the_model_does(converted: Converted) -> None:
    assert converted.modalities == {"text": "text", "image": "image"}
    samples = converted.samples()
    inputs = {name: samples[name] for name in ("text", "image")}
    assert set(samples["label"].tolist()) == {0, 1}
    with open_session(converted.bundle) as session:
        edge = np.concatenate(
            [session.run({n: a[i : i + 1] for n, a in inputs.items()})["match"] for i in range(64)]
        )
    own = converted.source(inputs)["match"]
    assert edge.shape == own.shape == (64, 1)
    assert ((edge > 0.5) == (own > 0.5)).mean() > 0.95
    assert converted.accuracy["float"] > 0.6


@pytest.mark.slow
def test_nothing_of_a_split_is_in_another() -> None:
    splits = dataset.load()
    for name in ("text", "image"):
        rows = [{row.tobytes() for row in arrays[name]} for arrays in splits.values()]
        assert not rows[0] & rows[1]
        assert not (rows[0] | rows[1]) & rows[2]
