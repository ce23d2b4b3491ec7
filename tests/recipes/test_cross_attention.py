"""Questions about one of four pictures: the data, and the recipe trained a little and converted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.datasets import questions
from recipes.datasets.words import fit_words, word_ids
from recipes.models import cross_attention


def test_evaluation_asks_in_wordings_of_its_own_with_known_words() -> None:
    trained, _ = questions.questions(questions.FRAMES[: questions.TRAINED_FRAMES])
    asked, places = questions.questions(questions.FRAMES[questions.TRAINED_FRAMES :])
    assert not set(trained) & set(asked)
    ids = word_ids(fit_words(trained, questions.WORDS), asked, questions.LENGTH + 2)
    assert (ids != 1).all()
    assert (ids[:, questions.LENGTH :] == 0).all()
    assert np.bincount(places).tolist() == [len(asked) // 4] * 4
    assert all(("left" in text) == (place % 2 == 0) for text, place in zip(asked, places, strict=True))


def test_squares_are_the_same_in_data_and_training() -> None:
    four = np.arange(2 * 4 * 3 * 32 * 32, dtype=np.float32).reshape(2, 4, 3, 32, 32)
    made = questions.square(four)
    np.testing.assert_array_equal(made[:, :, :32, 32:], four[:, 1])
    np.testing.assert_array_equal(made[:, :, 32:, :32], four[:, 2])
    np.testing.assert_array_equal(cross_attention.square(torch.from_numpy(four)).numpy(), made)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("cross_attention", tmp_path_factory.mktemp("cross_attention"))


@pytest.mark.slow
def test_bundle_gives_answer_and_attention_weights_as_the_model_does(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "text")}
    expected = converted.source(feed)
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    assert {name: rows.shape for name, rows in given.items()} == {"logits": (64, 10), "weights": (64, 16, 64)}
    np.testing.assert_allclose(given["weights"].sum(2), 1, atol=2e-3)
    assert np.abs(given["weights"] - expected["weights"]).max() < 0.02
    assert np.abs(given["logits"] - expected["logits"]).max() < 0.15 * np.abs(expected["logits"]).max()
    assert converted.accuracy["drop"] <= 0.01
    assert converted.roles[frozenset({"image", "text"})] == "fusion head"
