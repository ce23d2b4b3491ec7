"""The ray-caster and the radar against geometry that is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes/ stands beside the package

from recipes.datasets import camera_lidar, scenes


def one(kind: int, x: float, y: float, yaw: float = 0.0) -> scenes.Objects:
    return scenes.Objects(np.array([kind]), np.array([[x, y]]), np.array([yaw]), np.array([[0.9, 0.1, 0.1]]))


def test_a_ray_meets_a_box_where_its_face_is() -> None:
    ahead = np.array([[1.0, 0, 0]], np.float32)
    hits = scenes.cast(ahead, one(scenes.TRUCK, 20, 0).boxes())
    assert hits.part[0] == 0
    assert hits.face[0] == 0
    assert hits.distance[0] == pytest.approx(20 - 0.9 - 6.6 / 2, abs=1e-4)
    turned = scenes.cast(ahead, one(scenes.TRUCK, 20, 0.9, np.pi / 2).boxes())
    assert turned.distance[0] == pytest.approx(20 - 2.5 / 2, abs=1e-4)
    assert scenes.cast(ahead, one(scenes.TRUCK, -20, 0).boxes()).part[0] == -2


def test_a_ray_down_meets_the_ground_unless_something_is_before_it() -> None:
    down = np.array([[np.cos(0.1), 0, -np.sin(0.1)]], np.float32)
    away = scenes.cast(down, one(scenes.CAR, 30, 0).boxes())
    assert away.part[0] == -1
    assert away.distance[0] == pytest.approx(scenes.SENSOR[2] / np.sin(0.1), rel=1e-5)
    assert scenes.cast(down, one(scenes.CAR, 12, 0).boxes()).part[0] == 0


def test_left_is_left_in_picture_depth_and_plan() -> None:
    rng = np.random.default_rng(0)
    scene = one(scenes.TRUCK, 15, 8)
    _, parts = scenes.photograph(rng, scene.boxes(), camera_lidar.SIZE, scenes.Weather(1e9, 1.0, 0.0))
    points, hit = scenes.scan(rng, scene.boxes(), camera_lidar.BEAMS, camera_lidar.COLUMNS)
    truck = np.argwhere(parts >= 0)
    assert 0 < truck[:, 1].mean() < camera_lidar.SIZE[1] / 2
    label = camera_lidar.ground_truth(scene, np.array([True]))
    assert np.argwhere(label == 2)[:, 1].mean() == pytest.approx(8 + camera_lidar.CELLS / 2 - 0.5, abs=0.5)
    on_truck = points[hit >= 0]
    depth = camera_lidar.depth_map(on_truck)[0]
    seen = parts.reshape(16, 2, 48, 2).max((1, 3)) >= 0
    assert ((depth > 0) & seen).sum() > 0.9 * (depth > 0).sum() > 10
    assert depth[depth > 0].min() >= on_truck[:, 0].min()
    above = camera_lidar.pillars(on_truck)[0] > 0
    assert (label[above] == 2).mean() > 0.9


def test_cells_that_no_sensor_met_are_no_background() -> None:
    label = camera_lidar.ground_truth(one(scenes.CAR, 20, 0), np.array([False]))
    assert set(np.unique(label)) == {camera_lidar.UNSEEN, 0}


@pytest.mark.parametrize(("distance", "speed"), [(10.0, 3.0), (25.0, -6.0), (5.0, 0.0)])
def test_an_echo_is_in_its_range_and_doppler_bin(distance: float, speed: float) -> None:
    echo = scenes.Echoes(np.array([distance]), np.array([speed]), np.array([1.0]))
    power = scenes.range_doppler(np.random.default_rng(0), echo, 32, 32, 0.1)
    row, column = np.unravel_index(power.argmax(), power.shape)
    assert row == round(distance / scenes.RANGE_STEP)
    assert column - 16 == round(speed / scenes.SPEED_STEP)
    assert np.median(power) < 3 < 20 < power.max()
