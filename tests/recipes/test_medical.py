"""Image and table with gaps: what is paired, what a missing field means, and the way to a bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.metrics import metric
from edgemm.runtime import open_session
from recipes import metrics
from recipes.datasets import medical as dataset
from recipes.models import medical
from recipes.training import medical as training

QUICK = dataset.Options(images=1)


def test_no_patient_is_in_two_splits() -> None:
    """Three measurements together are no two patients', so they say who somebody is."""
    seen = []
    for split in dataset.load(QUICK).values():
        there = split["given"][:, :3].all(1)
        assert 0.3 < there.mean() < 0.6
        seen.append({tuple(row) for row in split["table"][there, :3].tolist()})
    assert all(not seen[a] & seen[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_what_is_drawn_is_not_in_the_table() -> None:
    assert not set(dataset.FIELDS) & set(dataset.DRAWN)
    assert len(dataset.FIELDS) == medical.FIELDS


def test_a_field_that_is_not_given_is_not_looked_at() -> None:
    model = medical.build()
    image, table = torch.randn(4, 1, 48, 48), torch.randn(4, medical.FIELDS)
    given = torch.ones_like(table)
    given[:, 3] = 0
    other = table.clone()
    other[:, 3] = 100
    with torch.no_grad():
        before, after = model(image, table, given), model(image, other, given)
        there = model(image, other, torch.ones_like(given))
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert not torch.equal(before["logit"], there["logit"])
    torch.testing.assert_close(before["weights"].sum(1), torch.ones(4))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("medical", tmp_path_factory.mktemp("medical"))


@pytest.mark.slow
def test_mask_and_table_are_one_modality(converted: Converted) -> None:
    assert converted.modalities == {"image": "image", "table": "table", "given": "table"}
    assert converted.roles[frozenset({"image", "table"})] == "fusion head"


@pytest.mark.slow
def test_the_bundle_takes_the_image_as_the_camera_gives_it(converted: Converted) -> None:
    with open_session(converted.bundle) as session:
        image = session.io.input("image")
    assert (image.dtype, image.shape[1:]) == ("uint8", (48, 48, 1))


@pytest.mark.slow
def test_bundle_gives_what_the_model_gives_with_and_without_fields(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "table", "given")}
    empty = feed | {name: np.zeros_like(feed[name]) for name in ("table", "given")}
    with open_session(converted.bundle) as session:
        for inputs in (feed, empty):
            given, expected = session.run(inputs), converted.source(training.preprocessed(inputs))
            risk, true = (1 / (1 + np.exp(-o["logit"])) for o in (given, expected))
            assert np.abs(risk - true).mean() < 0.03
    assert converted.accuracy["drop"] <= 0.01


@pytest.mark.slow
def test_it_learns_from_both(converted: Converted) -> None:
    data = converted.samples()
    feed = {name: data[name] for name in ("image", "table", "given")}
    with open_session(converted.bundle) as session:
        scores = metric("auroc").function(session.run(feed), "logit", data["label"])
        outputs = session.run(feed)
    assert scores > 0.8
    assert metrics.f1_of_logit(outputs, data["label"]) > 0.3
    assert metrics.calibration(outputs, data["label"]) > 0.6
