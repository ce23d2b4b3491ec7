"""Dialogues about a picture: the cache gives what the whole sequence gives, and sessions keep it between calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes import talk
from recipes.datasets import dialogues as dataset
from recipes.models import caption_dialogue as reference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split() -> dict[str, np.ndarray]:
    arrays = dataset._build(0.004)
    return {name: arrays[f"train_{name}"] for name in ("image", "tokens", "said", "quarters")}


def test_word_by_word_with_a_used_cache_is_the_whole_dialogue_at_once(split: dict[str, np.ndarray]) -> None:
    model = reference.build()
    image, tokens = torch.from_numpy(split["image"][:3]), torch.from_numpy(split["tokens"][:3])
    cache, position = torch.randn(3, 4, reference.LENGTH, reference.WIDTH), torch.full((3, 1), 17.0)
    with torch.no_grad():
        expected = model.teach(model.look(image), tokens)
        for at in range(30):
            outputs = model(image, tokens[:, at : at + 1], cache, position)
            cache, position = outputs["next_cache"], outputs["next_position"]
            torch.testing.assert_close(outputs["logits"], expected[:, at], atol=1e-5, rtol=1e-4)


def test_answers_are_true_of_the_picture(split: dict[str, np.ndarray]) -> None:
    moves = {"left": -1, "right": 1, "above": -2, "below": 2}
    followed = 0
    for tokens, quarters in zip(split["tokens"], split["quarters"], strict=True):
        at = -1
        for question, answer in dataset.turns(tokens):
            asked, said = ([dataset.WORDS[w] for w in words] for words in (question, answer))
            if asked[0] == "and":
                at += moves[asked[2] if asked[1] == "to" else asked[1]] if len(asked) < 4 else moves[asked[3]]
                followed += 1
            elif " ".join(asked[-2:]) in dataset.PLACES:
                at = dataset.PLACES.index(" ".join(asked[-2:]))
            else:
                continue
            expected = "nothing" if quarters[at] == dataset.EMPTY else dataset.NUMBERS[quarters[at]]
            assert said[-1] == expected
    assert followed > 10


def test_steps_ask_for_the_answers_words_alone(split: dict[str, np.ndarray]) -> None:
    steps = dataset.steps(split, 2)
    first = split["tokens"][0][split["tokens"][0] > 0]
    assert steps["token"][: len(first), 0].tolist() == first.tolist()
    asked = steps["label"][: len(first)]
    assert asked[asked >= 0].tolist() == [w for _, answer in dataset.turns(first) for w in (*answer, dataset.END)]
    assert asked[-1] == -1


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("caption_dialogue", tmp_path_factory.mktemp("caption_dialogue"))


@pytest.mark.slow
def test_the_cache_is_a_state_and_the_image_has_an_encoder_of_its_own(converted: Converted) -> None:
    states = {s["input"]: s["output"] for s in converted.result["states"]}
    assert states == reference.STATES
    assert converted.roles[frozenset({"image"})] == "encoder"
    assert converted.roles[frozenset({"image", "text"})] == "fusion head"
    assert converted.accuracy["drop"] <= converted.accuracy["budget"]


@pytest.mark.slow
def test_a_session_holds_the_dialogue_that_the_model_holds(converted: Converted) -> None:
    data = converted.samples("dialogues.npz")
    image = data["image"][:1]
    cache = np.zeros((1, 4, reference.LENGTH, reference.WIDTH), np.float32)
    position, agreed = np.zeros((1, 1), np.float32), []
    with open_session(converted.bundle) as session:
        for token in data["tokens"][0][data["tokens"][0] > 0][:24]:
            feed = {"image": image, "token": np.array([[token]])}
            expected = converted.source(feed | {"cache": cache, "position": position})
            cache, position = expected["next_cache"], expected["next_position"]
            agreed.append(session.run(feed)["logits"].argmax() == expected["logits"].argmax())
    assert np.mean(agreed) > 0.9


@pytest.mark.slow
def test_greedy_answers_do_not_depend_on_what_was_talked_about_before(converted: Converted) -> None:
    data = {name: rows[:3] for name, rows in converted.samples("dialogues.npz").items()}
    with open_session(converted.bundle) as session:
        once = talk.answers(session, data)
        again = talk.answers(session, {name: rows[::-1] for name, rows in data.items()})
    assert sorted(map(str, once)) == sorted(map(str, again))
    found = talk.scores(once)
    assert 0 <= found["exact_match"] <= 1
    assert all(len(said) <= talk.LONGEST for _, said, _ in once)
