"""The steps for point clouds against plain loops over the points."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgemm.data import Blank
from edgemm.errors import DataError, RecipeError
from edgemm.preprocess import output_of, parse, run
from edgemm.preprocess.points import Bev, Pillars
from edgemm.preprocess.step import blank_of
from edgemm.tensors import TensorSpec

BOX = (-8.0, -6.0, -3.0, 8.0, 6.0, 3.0)


def cloud(batch: int = 2, points: int = 300, values: int = 5) -> np.ndarray:
    """Returns clouds, in part outside of the box, every 17th point not there."""
    random = np.random.default_rng(0)
    result = random.normal(0, 5, (batch, points, values)).astype(np.float32)
    result[..., 3] = random.random((batch, points))
    result[:, ::17, 0] = np.nan
    return result


def by_cell(points: np.ndarray, cell: float) -> dict[tuple[int, int], list[np.ndarray]]:
    """Returns (row, column) -> the points of that cell."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for point in points:
        if all(low <= value < high for value, low, high in zip(point, BOX[:3], BOX[3:], strict=False)):
            place = math.floor((point[1] - BOX[1]) / cell), math.floor((point[0] - BOX[0]) / cell)
            found.setdefault(place, []).append(point)
    return found


def test_birds_eye_view() -> None:
    points = cloud()
    views = Bev(BOX, 0.5, ("height", "intensity", "density", "count")).apply(points)
    assert views.shape == (2, 4, 24, 32)
    for view, own in zip(views, points, strict=True):
        want = np.zeros_like(view)
        for place, members in by_cell(own, 0.5).items():
            want[(slice(None), *place)] = (
                max((p[2] + 3) / 6 for p in members),
                np.mean([p[3] for p in members]),
                min(1.0, math.log(len(members) + 1) / math.log(64)),
                len(members),
            )
        np.testing.assert_allclose(view, want, rtol=1e-5, atol=1e-6)


def test_pillars() -> None:
    points = cloud()
    features, indices, counts = (
        Pillars(BOX, 2.0, 20, 6, give).apply(points)  # type: ignore[arg-type]
        for give in ("features", "indices", "counts")
    )
    assert features.shape == (2, 20, 6, 10)
    for number, own in enumerate(points):
        cells = by_cell(own, 2.0)
        order = sorted(cells, key=lambda place: (-len(cells[place]), place))[:20]
        assert [tuple(i) for i in indices[number]] == order
        for pillar, place in enumerate(order):
            kept = np.stack(cells[place][:6])
            assert counts[number, pillar] == len(kept)
            got = features[number, pillar]
            np.testing.assert_array_equal(got[: len(kept), :5], kept)
            np.testing.assert_allclose(got[: len(kept), 5:8], kept[:, :3] - kept[:, :3].mean(0), atol=1e-5)
            middle = [BOX[0] + (place[1] + 0.5) * 2, BOX[1] + (place[0] + 0.5) * 2]
            np.testing.assert_allclose(got[: len(kept), 8:], kept[:, :2] - middle, atol=1e-5)
            assert not got[len(kept) :].any()


def test_room_for_more_pillars_than_there_are() -> None:
    points = np.full((1, 3, 4), np.nan, np.float32)
    points[0, 0] = 1
    step = Pillars(BOX, 2.0, 48, 2, "indices")
    assert [tuple(i) for i in step.apply(points)[0][:2]] == [(3, 4), (-1, -1)]
    assert not Pillars(BOX, 2.0, 48, 2).apply(points)[0, 1:].any()


def test_a_silent_lidar_sees_nothing() -> None:
    steps = parse([{"bev": {"range": list(BOX), "cell": 0.5}}])
    blank = Blank.parse(blank_of(steps))
    points = np.full((1, 9, 4), blank.value, np.float32)
    assert not run(steps, points).any()
    assert run(steps, np.zeros_like(points)).any()


def test_the_far_border_is_outside() -> None:
    points = np.array([[[8, 0, 0, 1], [np.nextafter(np.float32(8), np.float32(0)), 0, 0, 1]]], np.float32)
    counts = Bev(BOX, 0.5, ("count",)).apply(points)
    assert counts.sum() == 1
    assert counts[0, 0, 12, 31] == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"bev": {"range": [0, 0, 0, 1, 1, 0], "cell": 0.5}}, "range is"),
        ({"bev": {"range": [0, 0, 0, 1, 1, 1], "cell": 0.3}}, "whole numbers fill the range"),
        ({"bev": {"range": [0, 0, 0, 1, 1, 1], "cell": 0.0001}}, "fewer than"),
        ({"bev": {"range": [0, 0, 0, 1, 1, 1], "cell": 0.5, "channels": ["hight"]}}, "expected height or"),
        ({"pillars": {"range": [0, 0, 0, 1, 1, 1], "cell": 0.5, "pillars": 5, "points": 1}}, "1 to 4"),
    ],
)
def test_refuses_options(step: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse([step])


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float64", ("batch", 9, 4)), ("float32", ("batch", 9, 3)), ("float32", ("batch", 36))]
)
def test_refuses_what_are_no_points(dtype: str, shape: tuple[int | str, ...]) -> None:
    with pytest.raises(DataError, match="x, y, z, intensity"):
        output_of([Bev(BOX, 0.5)], TensorSpec("lidar", dtype, shape))
