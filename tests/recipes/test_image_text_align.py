"""Pictures and sentences in one space: the sentences, the loss, and encoders that answer alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes import metrics
from recipes.datasets import captions as dataset
from recipes.models.image_text_align import contrast


def test_scored_sentences_are_worded_as_no_training_sentence_is() -> None:
    training, rest = (
        {template.format(a, b) for way in ways for template in way for a in dataset.WORDS for b in dataset.WORDS}
        for ways in dataset._TEMPLATES
    )
    assert not training & rest
    assert len(training) == 600


def test_loss_is_least_where_what_means_the_same_is_alike() -> None:
    label = torch.tensor([3, 5, 3])
    same = 20 * (label[:, None] == label).float()
    assert contrast(same, label) == pytest.approx(2 / 3 * np.log(2), abs=1e-3)
    assert contrast(20 * torch.eye(3), label) > contrast(same, label)
    assert contrast(-same, label) > 10


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("image_text_align", tmp_path_factory.mktemp("align"), "--precision", "fp32")


@pytest.mark.slow
def test_bundle_is_scored_by_retrieval(converted: Converted) -> None:
    assert converted.modalities == {"image": "image", "input_ids": "text", "attention_mask": "text"}
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "input_ids", "attention_mask")}
    with open_session(converted.bundle) as session:
        given = session.run(feed)
    np.testing.assert_allclose(np.linalg.norm(given["text_vector"], axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(
        given["similarity"], (given["image_vector"] * given["text_vector"]).sum(1), atol=1e-4
    )
    score = metrics.recall_at_1(given, data["label"])
    assert score == pytest.approx(converted.accuracy["variant"], abs=0.02)
    assert converted.accuracy["metric"].endswith("recall_at_1")


def engine(bundle: Path, stage: str) -> Path:
    """Returns the file of the engine that is one stage alone."""
    with open_session(bundle) as session:
        return bundle / next(e.file for e in session.variant.engines if e.stages == (stage,))


@pytest.mark.slow
def test_an_encoder_is_opened_alone_and_fills_an_index(converted: Converted) -> None:
    """What an app does: vectors of pictures into an index here, of sentences there, and a product."""
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "input_ids", "attention_mask")}
    with open_session(converted.bundle) as session:
        together = session.run(feed)
    with open_session(engine(converted.bundle, "image")) as pictures:
        assert [i.name for i in pictures.io.inputs] == ["image"]
        index = pictures.run({"image": feed["image"]})["image_vector"]
    with open_session(engine(converted.bundle, "text")) as sentences:
        asked = sentences.run({name: feed[name] for name in ("input_ids", "attention_mask")})["text_vector"]
    np.testing.assert_allclose(index, together["image_vector"], atol=1e-5)
    np.testing.assert_allclose(asked, together["text_vector"], atol=1e-5)


@pytest.mark.slow
def test_one_sentence_is_read_once_for_many_pictures(converted: Converted) -> None:
    data = converted.samples()
    with open_session(converted.bundle, cache="marks") as session:
        text = {name: data[name][:1] for name in ("input_ids", "attention_mask")}
        first = session.run({"image": data["image"][:1], **text}, changed={"image", "text"})
        for row in range(1, 4):
            image = data["image"][row : row + 1]
            found = session.run({"image": image, **text}, changed={"image"})
            np.testing.assert_array_equal(found["text_vector"], first["text_vector"])
            assert found["similarity"][0] != first["similarity"][0]
        info = session.cache_info()
    assert info.reused["text"] == 3
    assert not info.reused.get("image")
