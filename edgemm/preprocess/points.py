"""Steps for point clouds: `[batch, points, values]` in float32, x, y and z in metres first, then intensity.

Points outside of the range count nowhere, nor do those with NaN in x, y or z: clouds of different size are filled
up with points far away (`FAR`), and a lidar that is silent sees nothing but such. A grid
has a row for each step in y and a column for each in x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgemm.preprocess.step import Step, expect, refuse
from edgemm.tensors import TensorSpec

Range = tuple[float, float, float, float, float, float]
Array = npt.NDArray[np.float32]
Channel = Literal["height", "intensity", "density", "count"]

FAR = "constant:1e9"
"""What a silent lidar gives; zeros would be points at its own place."""

DENSE = 64
"""Points in a cell of density 1 (Chen et al., MV3D, 2017)."""

_EXACT = 1 << 24
"""Numbers of cells stay below this: float32 counts no further."""


@dataclass(frozen=True, slots=True)
class Bev:
    """A bird's-eye view: one image of the points, seen from above.

    Channels: `height` of the highest point (0 at the bottom of the range, 1 at its top), mean `intensity` (the
    fourth value of a point), `density` min(1, log(1 + points) / log 64) as MV3D and Complex-YOLO have it, `count`
    of points. Cells without a point are 0.

    Attributes:
        range: Least x, y and z, then largest ones, which do not belong to it.
        cell: Side of a cell in metres.
        channels: In order.
    """

    blank: ClassVar[str] = FAR

    range: Range
    cell: float
    channels: tuple[Channel, ...] = ("height", "intensity", "density")

    def __post_init__(self) -> None:
        _check_grid(self, self.range, self.cell)
        expect(len(self.channels) >= 1, self, "channels", "one channel or more")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns float32 `[B, channels, rows, columns]`."""
        rows, columns = grid_of(self.range, self.cell)
        cells = cells_of(batch, self.range, self.cell)
        images = [_view(points, own, self) for points, own in zip(batch, cells, strict=True)]
        shape = (len(batch), len(self.channels), rows, columns)
        return np.stack(images).reshape(shape) if images else np.zeros(shape, np.float32)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 `[batch, channels, rows, columns]`.

        Raises:
            DataError: They are no points, or `intensity` is asked for of points without.
        """
        _check_points(self, spec, 4 if "intensity" in self.channels else 3)
        return replace(spec, shape=(spec.shape[0], len(self.channels), *grid_of(self.range, self.cell)))


@dataclass(frozen=True, slots=True)
class Pillars:
    """Points by cell of the ground, as PointPillars takes them (Lang et al., 2019).

    The cells with the most points become pillars, in this order, equal ones in that of the grid; of a pillar the
    points that come first in the cloud count. `features` are the values of each point, its offset from the mean of
    the pillar's points (x, y, z), and that from the middle of its cell (x, y); zeros where there is no point. A
    model that also takes `indices` or `counts` names the same `source` for them.

    Attributes:
        range: Least x, y and z, then largest ones, which do not belong to it.
        cell: Side of a cell in metres.
        pillars: How many there are room for.
        points: How many points of a pillar there is room for.
        give: `features` float32 `[batch, pillars, points, values + 5]`, `indices` int64 `[batch, pillars, 2]` (row
            and column, -1 where there is no pillar), or `counts` int64 `[batch, pillars]` of points that are kept.
    """

    blank: ClassVar[str] = FAR

    range: Range
    cell: float
    pillars: int
    points: int
    give: Literal["features", "indices", "counts"] = "features"

    def __post_init__(self) -> None:
        _check_grid(self, self.range, self.cell)
        rows, columns = grid_of(self.range, self.cell)
        expect(
            1 <= self.pillars <= rows * columns, self, "pillars", f"1 to {rows * columns}, the cells of the grid"
        )
        expect(self.points >= 1, self, "points", "1 or more")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns what `give` names."""
        parts = [self._one(points, own) for points, own in zip(batch, self._cells(batch), strict=True)]
        shape = self.output(TensorSpec("points", "float32", (len(batch), *batch.shape[1:]))).shape
        dtype = np.float32 if self.give == "features" else np.int64
        return np.ascontiguousarray(np.stack(parts), dtype) if parts else np.zeros(shape, dtype)  # type: ignore[arg-type]

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns dtype and shape of what `give` names.

        Raises:
            DataError: They are no points.
        """
        _check_points(self, spec, 3)
        batch, values = spec.shape[0], spec.shape[2]
        if self.give == "indices":
            return replace(spec, dtype="int64", shape=(batch, self.pillars, 2))
        if self.give == "counts":
            return replace(spec, dtype="int64", shape=(batch, self.pillars))
        assert isinstance(values, int)
        return replace(spec, shape=(batch, self.pillars, self.points, values + 5))

    def _cells(self, batch: np.ndarray) -> npt.NDArray[np.int64]:
        return cells_of(batch, self.range, self.cell)

    def _one(self, points: np.ndarray, cells: npt.NDArray[np.int64]) -> np.ndarray:
        rows, columns = grid_of(self.range, self.cell)
        counts = np.bincount(cells, minlength=rows * columns + 1)[: rows * columns]
        chosen = np.argsort(-counts, kind="stable")[: self.pillars]
        kept = np.minimum(counts[chosen], self.points)
        place = np.stack([chosen // columns, chosen % columns], axis=1)
        if self.give == "counts":
            return kept
        if self.give == "indices":
            return np.where(kept[:, None] > 0, place, -1)
        values = np.zeros((self.pillars, self.points, points.shape[1]), np.float32)
        for number, (cell, count) in enumerate(zip(chosen, kept, strict=True)):
            if count == 0:
                break
            values[number, :count] = points[np.flatnonzero(cells == cell)[:count]]
        mean = values[..., :3].sum(1) / np.maximum(kept, 1).astype(np.float32)[:, None]
        offsets = [values[..., :3] - mean[:, None], values[..., :2] - centers(self)[chosen][:, None]]
        here = np.arange(self.points) < kept[:, None]
        result: np.ndarray = np.concatenate([values, *offsets], axis=2) * here[..., None].astype(np.float32)
        return result


def grid_of(box: Range, cell: float) -> tuple[int, int]:
    """Returns rows and columns of a grid: steps in y and in x."""
    return tuple(max(round((box[axis + 3] - box[axis]) / cell), 1) for axis in (1, 0))  # type: ignore[return-value]


def cells_of(batch: np.ndarray, box: Range, cell: float) -> npt.NDArray[np.int64]:
    """Returns the cell of each point `[B, N]`, row by row; one behind the last for points that count nowhere."""
    rows, columns = grid_of(box, cell)
    low, high = np.array(box[:3], np.float32), np.array(box[3:], np.float32)
    places = batch[..., :3]
    inside: npt.NDArray[np.bool_] = np.all((places >= low) & (places < high), axis=-1)
    steps = np.floor((np.where(inside[..., None], places, low) - low)[..., :2] * np.float32(1 / cell))
    steps = np.minimum(steps, np.array([columns - 1, rows - 1], np.float32))  # rounding at the far border
    found: npt.NDArray[np.int64] = (steps[..., 1] * np.float32(columns) + steps[..., 0]).astype(np.int64)
    return np.where(inside, found, rows * columns)


def centers(step: Pillars) -> Array:
    """Returns float32 `[cells, 2]`: x and y of the middle of each cell, row by row."""
    rows, columns = grid_of(step.range, step.cell)
    x = step.range[0] + (np.arange(columns) + 0.5) * step.cell
    y = step.range[1] + (np.arange(rows) + 0.5) * step.cell
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    return grid.reshape(-1, 2).astype(np.float32)


def _view(points: np.ndarray, cells: npt.NDArray[np.int64], step: Bev) -> Array:
    rows, columns = grid_of(step.range, step.cell)
    size = rows * columns + 1
    counts = np.bincount(cells, minlength=size).astype(np.float32)
    result = np.zeros((len(step.channels), size), np.float32)
    for number, channel in enumerate(step.channels):
        if channel == "height":
            low, high = np.float32(step.range[2]), np.float32(step.range[5])
            inside = cells < size - 1
            np.maximum.at(result[number], cells[inside], (points[inside, 2] - low) / (high - low))
        elif channel == "intensity":
            inside = cells < size - 1
            np.add.at(result[number], cells[inside], points[inside, 3].astype(np.float32))
            result[number] /= np.maximum(counts, 1)
        elif channel == "density":
            result[number] = np.minimum(np.log(counts + 1) / np.float32(math.log(DENSE)), 1)
        else:
            result[number] = counts
    return result[:, :-1]


def _check_grid(step: Step, box: Range, cell: float) -> None:
    ordered = all(box[axis] < box[axis + 3] for axis in range(3)) and all(map(math.isfinite, box))
    expect(ordered, step, "range", "x, y, z of the lowest corner, then of the highest one")
    expect(cell > 0 and math.isfinite(cell), step, "cell", "metres above 0")
    sides = [(box[axis + 3] - box[axis]) / cell for axis in (0, 1)]
    whole = all(abs(side - round(side)) < 1e-3 * max(side, 1) and round(side) >= 1 for side in sides)
    expect(whole, step, "cell", "a side of which whole numbers fill the range in x and y")
    expect(round(sides[0]) * round(sides[1]) < _EXACT, step, "cell", f"fewer than {_EXACT} cells in the range")


def _check_points(step: Step, spec: TensorSpec, least: int) -> None:
    values = spec.shape[2] if len(spec.shape) == 3 else 0
    if spec.dtype != "float32" or not isinstance(values, int) or values < least:
        names = "x, y, z, intensity" if least == 4 else "x, y, z"
        wanted = f"float32 points [batch, points, values], {least} values or more ({names})"
        raise refuse(
            step, spec, wanted, "give the layout of a cloud in `raw`: {dtype: float32, shape: [points, 4]}"
        )
