"""ONNX nodes of the steps for point clouds: scattered sums and maxima over the cells of a grid."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgemm.bake.tape import Tape
from edgemm.preprocess import points
from edgemm.tensors import TensorSpec


def bev(tape: Tape, value: ir.Value, step: points.Bev, spec: TensorSpec) -> ir.Value:
    """One scatter over the cells for each channel; points outside go to a cell behind the last, which is cut."""
    rows, columns = points.grid_of(step.range, step.cell)
    cells = _cells(tape, value, step.range, step.cell)
    empty = _filled(tape, value, rows * columns + 1)
    counts = _counts(tape, cells, empty)
    channels = [_channel(tape, value, step, channel, (cells, empty, counts)) for channel in step.channels]
    whole = [_cut(tape, channel, 0, rows * columns, axis=1) for channel in channels]
    images = [tape.op("Reshape", [channel, tape.integers(0, 1, rows, columns)]) for channel in whole]
    return images[0] if len(images) == 1 else tape.op("Concat", images, axis=1)


def _channel(
    tape: Tape, value: ir.Value, step: points.Bev, channel: str, cells: tuple[ir.Value, ir.Value, ir.Value]
) -> ir.Value:
    """Returns one channel `[batch, cells + 1]`."""
    own, empty, counts = cells
    if channel == "height":
        low, high = np.float32(step.range[2]), np.float32(step.range[5])
        above = tape.op("Sub", [_column(tape, value, 2), tape.constant(low)])
        above = tape.op("Div", [above, tape.constant(high - low)])
        return tape.op("ScatterElements", [empty, own, above], axis=1, reduction="max")
    if channel == "intensity":
        total = tape.op("ScatterElements", [empty, own, _column(tape, value, 3)], axis=1, reduction="add")
        return tape.op("Div", [total, tape.op("Max", [counts, tape.constant(1.0)])])
    if channel == "density":
        log = tape.op("Log", [tape.op("Add", [counts, tape.constant(1.0)])])
        log = tape.op("Div", [log, tape.constant(np.float32(math.log(points.DENSE)))])
        return tape.op("Min", [log, tape.constant(1.0)])
    return counts


def pillars(tape: Tape, value: ir.Value, step: points.Pillars, spec: TensorSpec) -> ir.Value:
    """TopK over the counts of cells makes pillars, TopK over the cells of points sorts these by cell.

    A point's number within its cell is its place in that order less the place of the first point of the cell, the
    sum of the counts of all cells before. Both sorts keep the order of equals, as ONNX demands of TopK.
    """
    rows, columns = points.grid_of(step.range, step.cell)
    size = rows * columns
    cells = _cells(tape, value, step.range, step.cell)
    counts = _counts(tape, cells, _filled(tape, value, size + 1))
    inside = _cut(tape, counts, 0, size, axis=1)
    most, chosen = tape.ops("TopK", [inside, tape.integers(step.pillars)], 2, axis=1)
    kept = tape.op("Min", [most, tape.constant(float(step.points))])
    if step.give == "counts":
        return tape.cast(kept, "int64")
    if step.give == "indices":
        width = tape.constant(np.array(columns, np.int64))
        parts = [tape.op(op, [chosen, width]) for op in ("Div", "Mod")]
        place = tape.op("Concat", [tape.op("Unsqueeze", [p, tape.integers(2)]) for p in parts], axis=2)
        here = tape.op("Greater", [tape.op("Unsqueeze", [kept, tape.integers(2)]), tape.constant(0.0)])
        return tape.op("Where", [here, place, tape.constant(np.array(-1, np.int64))])
    values = _sorted_in(tape, value, step, spec, (cells, counts, chosen))
    return _features(tape, values, step, kept, chosen)


def _sorted_in(
    tape: Tape,
    value: ir.Value,
    step: points.Pillars,
    spec: TensorSpec,
    cells: tuple[ir.Value, ir.Value, ir.Value],
) -> ir.Value:
    """Returns `[batch, pillars, points, values]`: each point in its place, zeros elsewhere."""
    own, counts, chosen = cells
    width, room = spec.shape[2], step.pillars * step.points
    assert isinstance(width, int)
    number = tape.op("Shape", [value], start=1, end=2)
    sorted_cells, order = tape.ops("TopK", [own, number], 2, axis=1, largest=0)
    first = tape.op("CumSum", [counts, tape.constant(np.array(1, np.int64))], exclusive=1)
    position = tape.op(
        "CumSum", [_like(tape, sorted_cells, 1.0), tape.constant(np.array(1, np.int64))], exclusive=1
    )
    rank = tape.op("Sub", [position, tape.op("GatherElements", [first, sorted_cells], axis=1)])
    none = tape.op("Sub", [tape.op("Mul", [counts, tape.constant(0.0)]), tape.constant(1.0)])  # -1 for each cell
    slots = np.arange(step.pillars, dtype=np.float32)[None]
    slots_like = tape.op("Add", [tape.op("Mul", [tape.cast(chosen), tape.constant(0.0)]), tape.constant(slots)])
    slot_of = tape.op("ScatterElements", [none, chosen, slots_like], axis=1)
    slot = tape.op("GatherElements", [slot_of, sorted_cells], axis=1)
    fits = tape.op("Less", [rank, tape.constant(float(step.points))])
    fits = tape.op("And", [fits, tape.op("GreaterOrEqual", [slot, tape.constant(0.0)])])
    target = tape.op("Add", [tape.op("Mul", [slot, tape.constant(float(step.points))]), rank])
    target = tape.cast(tape.op("Where", [fits, target, tape.constant(float(room))]), "int64")
    wide = tape.op("Shape", [value])
    spread = [tape.op("Expand", [tape.op("Unsqueeze", [v, tape.integers(2)]), wide]) for v in (order, target)]
    ordered = tape.op("GatherElements", [value, spread[0]], axis=1)
    batch = tape.op("Shape", [value], start=0, end=1)
    shape = tape.op("Concat", [batch, tape.integers(room + 1, width)], axis=0)
    zeros = tape.op("Expand", [tape.constant(0.0), shape])
    placed = tape.op("ScatterElements", [zeros, spread[1], ordered], axis=1)
    placed = _cut(tape, placed, 0, room, axis=1)
    return tape.op("Reshape", [placed, tape.integers(0, step.pillars, step.points, width)])


def _features(tape: Tape, values: ir.Value, step: points.Pillars, kept: ir.Value, chosen: ir.Value) -> ir.Value:
    """Returns the values of points with their offsets from the mean and from the middle of the cell."""
    places = _cut(tape, values, 0, 3, axis=3)
    total = tape.op("ReduceSum", [places, tape.integers(2)], keepdims=1)
    several = tape.op("Unsqueeze", [kept, tape.integers(2, 3)])
    mean = tape.op("Div", [total, tape.op("Max", [several, tape.constant(1.0)])])
    middle = tape.op("Gather", [tape.constant(points.centers(step)), chosen], axis=0)
    middle = tape.op("Unsqueeze", [middle, tape.integers(2)])
    offsets = [tape.op("Sub", [places, mean]), tape.op("Sub", [_cut(tape, values, 0, 2, axis=3), middle])]
    numbers = np.arange(step.points, dtype=np.float32)[None, None, :, None]
    here = tape.cast(tape.op("Less", [tape.constant(numbers), several]))
    return tape.op("Mul", [tape.op("Concat", [values, *offsets], axis=3), here])


def _cells(tape: Tape, value: ir.Value, box: points.Range, cell: float) -> ir.Value:
    """Returns the cell of each point, int64 `[batch, points]`, as `edgemm.preprocess.points.cells_of` does."""
    rows, columns = points.grid_of(box, cell)
    low, high = (tape.constant(np.array(corner, np.float32)) for corner in (box[:3], box[3:]))
    places = _cut(tape, value, 0, 3, axis=2)
    within = tape.op("And", [tape.op("GreaterOrEqual", [places, low]), tape.op("Less", [places, high])])
    every = tape.op("ReduceMin", [tape.cast(within), tape.integers(2)], keepdims=1)
    inside = tape.op("Greater", [every, tape.constant(0.5)])
    steps = tape.op("Sub", [tape.op("Where", [inside, places, low]), low])
    steps = _cut(tape, steps, 0, 2, axis=2)
    steps = tape.op("Floor", [tape.op("Mul", [steps, tape.constant(np.float32(1 / cell))])])
    steps = tape.op("Min", [steps, tape.constant(np.array([columns - 1, rows - 1], np.float32))])
    found = tape.op("MatMul", [steps, tape.constant(np.array([[1], [columns]], np.float32))])
    found = tape.op("Where", [inside, found, tape.constant(float(rows * columns))])
    return tape.cast(tape.op("Squeeze", [found, tape.integers(2)]), "int64")


def _counts(tape: Tape, cells: ir.Value, empty: ir.Value) -> ir.Value:
    return tape.op("ScatterElements", [empty, cells, _like(tape, cells, 1.0)], axis=1, reduction="add")


def _like(tape: Tape, value: ir.Value, number: float) -> ir.Value:
    return tape.op("Expand", [tape.constant(number), tape.op("Shape", [value])])


def _filled(tape: Tape, value: ir.Value, size: int) -> ir.Value:
    """Returns zeros `[batch, size]`."""
    shape = tape.op("Concat", [tape.op("Shape", [value], start=0, end=1), tape.integers(size)], axis=0)
    return tape.op("Expand", [tape.constant(0.0), shape])


def _column(tape: Tape, value: ir.Value, number: int) -> ir.Value:
    return tape.op("Gather", [value, tape.constant(np.array(number, np.int64))], axis=2)


def _cut(tape: Tape, value: ir.Value, start: int, end: int, *, axis: int) -> ir.Value:
    return tape.op("Slice", [value, tape.integers(start), tape.integers(end), tape.integers(axis)])
