"""Road scenes for a camera and a lidar, with the ground seen from above. Synthetic, from `scenes`.

A lidar tells a pedestrian from a pole, or a car from a container, badly: their outlines are alike. A camera tells
them apart by how they are painted, but not how far away they are. Splits have their own scenes.
"""

from __future__ import annotations

import numpy as np

from recipes.datasets import scenes
from recipes.datasets.cache import Arrays, cached_arrays

CLASSES = ("background", "car", "truck", "person")
_CLASS_OF = np.array([1, 2, 3, 3, 0, 0])  # by index into scenes.KINDS
UNSEEN = -1
"""Label of ground that is covered by something which neither sensor has seen."""

SIZE = (32, 96)
BEAMS, COLUMNS = 24, 192
CELLS, AHEAD = 40, 2.0
"""Cells of one metre along x from `AHEAD` metres on, and as many along y about the middle."""
STRIDE = 2
"""Pixels per cell of the camera's depth map."""
REACH = 42.0
SPLITS = {"train": 1200, "calib": 250, "eval": 500}


def load(share: float = 1.0) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `camera` `[N, 3, 32, 96]` float32 in [-1, 1], `pillars` `[N, 5, 40, 40]` float32, `depth`
    `[N, 1, 16, 48]` float32 in metres ahead (0: no return), and `label` `[N, 40, 40]` int64, index into `CLASSES`
    or -1, first axis x ahead, second y from right to left.

    Args:
        share: Part of the samples to build, 0 to 1, for quick trials.
    """
    flat = cached_arrays("camera_lidar", f"1 {share} {SPLITS}", lambda: _build(share))
    return {s: {n: flat[f"{s}_{n}"] for n in ("camera", "pillars", "depth", "label")} for s in SPLITS}


def _build(share: float) -> Arrays:
    arrays: Arrays = {}
    for seed, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([8, seed])
        samples = [_sample(rng) for _ in range(max(8, round(count * share)))]
        for name in samples[0]:
            arrays[f"{split}_{name}"] = np.stack([s[name] for s in samples])
    return arrays


def _sample(rng: np.random.Generator) -> Arrays:
    scene = _scene(rng)
    boxes = scene.boxes()
    picture, parts = scenes.photograph(
        rng, boxes, SIZE, scenes.Weather(rng.uniform(30, 120), rng.uniform(0.35, 1.0), 0.04)
    )
    points, hit = scenes.scan(rng, boxes, BEAMS, COLUMNS)
    seen = [(hit // 2 == k).sum() * 2 + (parts // 2 == k).sum() >= 6 for k in range(len(scene.kind))]
    return {
        "camera": 2 * picture - 1,
        "pillars": pillars(points),
        "depth": depth_map(points),
        "label": ground_truth(scene, np.array(seen)),
    }


def _scene(rng: np.random.Generator) -> scenes.Objects:
    """Returns three to eight things that do not stand in one another."""
    kinds: list[int] = []
    places: list[np.ndarray] = []
    for kind in rng.choice(len(scenes.KINDS), rng.integers(3, 9), p=[0.25, 0.12, 0.2, 0.13, 0.16, 0.14]):
        x = rng.uniform(6, 36)
        place = np.array([x, rng.uniform(-1, 1) * min(0.85 * x, 17)])
        room = 7.0 if kind == scenes.TRUCK else 4.5 if kind in (scenes.CAR, scenes.CONTAINER) else 2.0
        if all(np.linalg.norm(place - other) > room for other in places):
            kinds.append(int(kind))
            places.append(place)
    yaw = rng.choice([0.0, np.pi / 2, np.pi], len(kinds)) + rng.normal(0, 0.15, len(kinds))
    return scenes.Objects(np.array(kinds), np.array(places), yaw, rng.uniform(0.1, 0.9, (len(kinds), 3)))


def cells_of(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cell `[N]` of each point `[N, 2 or more]` from above, and which are in the grid."""
    x = np.floor(points[:, 0] - AHEAD).astype(int)
    y = np.floor(points[:, 1] + CELLS / 2).astype(int)
    inside = (x >= 0) & (x < CELLS) & (y >= 0) & (y < CELLS)
    return x * CELLS + y, inside


def pillars(points: np.ndarray) -> np.ndarray:
    """Returns what the points `[N, 4]` are in each cell, `[5, 40, 40]` float32; zeros in cells without a point.

    Log of 1 + their number, highest, lowest and mean height in metres, mean intensity: the statistics of a pillar
    that PIXOR and Complex-YOLO start from, in the place of PointPillars' small network over points.
    """
    cell, inside = cells_of(points)
    cell, height, bright = cell[inside], points[inside, 2], points[inside, 3]
    count = np.bincount(cell, minlength=CELLS * CELLS)
    some = np.maximum(count, 1)
    highest, lowest = np.full(CELLS * CELLS, -np.inf), np.full(CELLS * CELLS, np.inf)
    np.maximum.at(highest, cell, height)
    np.minimum.at(lowest, cell, height)
    highest[count == 0] = lowest[count == 0] = 0
    mean = [np.bincount(cell, value, CELLS * CELLS) / some for value in (height, bright)]
    layers = np.stack([np.log1p(count), highest, lowest, *mean])
    return layers.reshape(5, CELLS, CELLS).astype(np.float32)


def depth_map(points: np.ndarray) -> np.ndarray:
    """Returns metres ahead of the nearest point in each cell of the picture, `[1, 16, 48]` float32, 0 without one.

    The points `[N, 4]` are projected into the pinhole camera; cells are 2 × 2 pixels.
    """
    height, width = (side // STRIDE for side in SIZE)
    x = np.maximum(points[:, 0], 1e-3)
    reach = np.tan(scenes.FIELD / 2)
    column = np.floor((1 - points[:, 1] / x / reach) * width / 2).astype(int)
    row = np.floor((1 - (points[:, 2] - scenes.SENSOR[2]) / x / (reach * height / width)) * height / 2).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (points[:, 0] < REACH)
    depth = np.full(height * width, np.inf)
    np.minimum.at(depth, (row * width + column)[inside], x[inside])
    depth[np.isinf(depth)] = 0
    return depth.reshape(1, height, width).astype(np.float32)


def ground_truth(scene: scenes.Objects, seen: np.ndarray) -> np.ndarray:
    """Returns the class of each cell `[40, 40]` int64: whose footprint, with 0.3 m around it, has its middle.

    Args:
        scene: What stands there.
        seen: `[K]`, which of it a sensor has met; the others' cells are `UNSEEN`.
    """
    x, y = np.meshgrid(AHEAD + np.arange(CELLS) + 0.5, np.arange(CELLS) + 0.5 - CELLS / 2, indexing="ij")
    label = np.zeros((CELLS, CELLS), np.int64)
    sizes, middles = scene.footprints()
    for kind, size, middle, yaw, met in zip(scene.kind, sizes, middles, scene.yaw, seen, strict=True):
        along = np.cos(yaw) * (x - middle[0]) + np.sin(yaw) * (y - middle[1])
        across = np.cos(yaw) * (y - middle[1]) - np.sin(yaw) * (x - middle[0])
        covered = (np.abs(along) <= size[0] / 2 + 0.3) & (np.abs(across) <= size[1] / 2 + 0.3)
        label[covered] = _CLASS_OF[kind] if met else UNSEEN
    return label
