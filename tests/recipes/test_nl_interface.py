"""Commands to a screen: what the data promise, and the way to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes import metrics
from recipes.datasets import nl_interface as dataset
from recipes.models import nl_interface as reference


def test_names_and_sentences_for_evaluation_are_not_trained_on() -> None:
    assert not set(dataset.NAMES["train"]) & set(dataset.NAMES["eval"])
    words = {w for pair in dataset.NAMES["train"] for w in pair}
    assert {w for pair in dataset.NAMES["eval"] for w in pair} <= words
    assert len(dataset.WORDS) <= reference.VOCABULARY
    assert all(len(set(frames)) == len(frames) for frames in dataset.FRAMES.values())


def test_the_screen_says_which_words_are_the_name_and_what_is_left_to_do() -> None:
    arrays = dataset._build(0.04)
    tokens, names, labels = (arrays[f"train_{n}"] for n in ("tokens", "names", "label"))
    seen = set()
    for row, label in enumerate(labels):
        intent = dataset.INTENTS[label[0]]
        target = tokens[row][np.isin(label[1:], (1, 2))]
        shown = [tuple(element[1:]) for element in names[row]]
        assert len(target) == 2
        assert (tuple(target) in shown) == (intent != "not_here")
        if intent in ("turn_on", "turn_off"):
            state = arrays["train_layout"][row][shown.index(tuple(target)), 2]
            assert state == (intent == "turn_off")
        seen.add(intent)
    assert seen == set(dataset.INTENTS)
    assert ((tokens > 0) == (labels[:, 1:] >= 0)).all()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("nl_interface", tmp_path_factory.mktemp("nl_interface"))


@pytest.mark.slow
def test_words_and_screen_are_encoders_of_their_own(converted: Converted) -> None:
    assert converted.modalities == {"tokens": "text", "names": "screen", "layout": "screen"}
    assert converted.roles == {
        frozenset({"text"}): "encoder",
        frozenset({"screen"}): "encoder",
        frozenset({"text", "screen"}): "fusion head",
    }


@pytest.mark.slow
def test_bundle_fills_the_slots_that_the_model_fills(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in reference.INPUTS}
    expected = converted.source(feed)
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    for score in (metrics.intent_accuracy, metrics.slot_f1):
        assert abs(score(given, data["label"]) - score(expected, data["label"])) < 0.06
    assert metrics.slot_f1(given, data["label"]) > 0.05
    assert converted.accuracy["drop"] <= converted.accuracy["budget"]
