"""Camera and lidar from above: the lift by hand, the cross edge in the bundle, and the way there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.models import camera_lidar as reference


def test_the_lift_puts_a_pixel_where_the_lidar_measured_it() -> None:
    features, depth = torch.zeros(1, 2, 16, 48), torch.zeros(1, 1, 16, 48)
    features[0, :, 9, 12] = torch.tensor([3.0, -1.0])
    depth[0, 0, 9, 12] = 20.5  # the middle of the cells 18 to 19 m beyond the grid's edge
    ground = reference.Lift()(features, depth)
    there = ground[0, 0].nonzero()
    assert set(there[:, 0].tolist()) == {18}
    y = there[:, 1] + 0.5 - reference.CELLS / 2
    column = (1 - y / 20.5) * reference.COLUMNS / 2
    assert ((column >= 12) & (column < 13)).all()
    torch.testing.assert_close(ground[0, :, 18, there[0, 1]], torch.tensor([3.0, -1.0]))
    depth[0, 0, 9, 12] = 0  # no return
    assert reference.Lift()(features, depth).abs().sum() == 0


def test_mirrored_scenes_give_mirrored_features_of_the_lift() -> None:
    torch.manual_seed(0)
    features, depth = torch.randn(1, 3, 16, 48), 40 * torch.rand(1, 1, 16, 48)
    lift = reference.Lift()
    mirrored = lift(features.flip(-1), depth.flip(-1)).flip(-1)
    same = torch.isclose(lift(features, depth), mirrored, atol=1e-5)
    assert same.float().mean() > 0.98  # where a cell's middle is on the edge of two columns, the right one counts


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("camera_lidar", tmp_path_factory.mktemp("camera_lidar"))


@pytest.mark.slow
def test_the_lift_is_fusion_though_it_is_in_the_cameras_branch(converted: Converted) -> None:
    assert converted.modalities == {"camera": "camera", "pillars": "lidar", "depth": "lidar"}
    assert converted.roles == {
        frozenset({"camera"}): "encoder",
        frozenset({"lidar"}): "encoder",
        frozenset({"camera", "lidar"}): "fusion head",
    }


@pytest.mark.slow
def test_bundle_says_what_the_model_says(converted: Converted) -> None:
    data = {name: rows[:8] for name, rows in converted.samples().items()}
    feed = {name: data[name] for name in reference.INPUTS}
    expected = converted.source(feed)["logits"]
    with open_session(converted.bundle) as session:
        given = session.run(feed)["logits"]
    assert given.shape == (8, 4, 40, 40)
    assert np.abs(given - expected).max() < 0.1 * np.abs(expected).max()
    assert converted.accuracy["drop"] <= converted.accuracy["budget"]
