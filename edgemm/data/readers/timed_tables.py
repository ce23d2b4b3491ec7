"""Tables whose rows have times: one for each sensor, put together by `align`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgemm.data.readers.align import AlignedSamples, Track, check_order
from edgemm.data.readers.description import Align, Description
from edgemm.data.readers.manifest import open_table
from edgemm.data.readers.rules import Rule, finish
from edgemm.data.readers.source import ReaderSource
from edgemm.data.readers.table import Table, check_files, resolve, row_array
from edgemm.errors import DataError

TIMES = ("time", "timestamp", "stamp", "t")
"""Columns that hold times in seconds when nothing was said."""


def open_timed(description: Description) -> ReaderSource:
    """Returns samples from tables with times; `table:` of an input is relative to the description file.

    Raises:
        DataError: A table, column or time is missing or wrong, or nothing matches.
    """
    if not description.inputs:
        raise DataError(
            f"{description.origin}: `align` without `inputs`: nothing says which columns are matched.",
            hint="for example inputs: {imu: {table: imu.csv, column: [ax, ay, az], time: stamp}}",
        )
    tables: dict[str, Table] = {}
    tracks: dict[str, Track] = {}
    notes: list[str] = []
    for name, rule in description.rules.items():
        path = description.source if rule.table is None else description.source.parent / rule.table
        table = tables.setdefault(str(path), open_table(path))
        origin = f"{description.origin}: inputs.{name} ({path.name})"
        resolved, classes = resolve(origin, table, {name: rule})
        notes += check_files(table, resolved)
        notes += [f"{origin}: '{column}' has {len(found)} classes." for column, found in classes.items()]
        tracks[name] = TableTrack(table, resolved[name], times_of(table, rule.time, str(path)))
    samples = AlignedSamples(description.origin, tracks, description.align or Align())
    samples.notes[:0] = notes
    return samples


def times_of(table: Table, column: str | None, where: str) -> np.ndarray:
    """Returns the times of a table's rows in nanoseconds; they are seconds in the file.

    Raises:
        DataError: No such column, no number, or an earlier time after a later one.
    """
    if column is None:
        column = next((c for c in TIMES if c in table.columns), None)
    if column is None or column not in table.columns:
        named = f" '{column}'" if column else ""
        raise DataError(
            f"{where}: no column of times{named} (columns: {', '.join(table.columns)}).",
            hint="name it: inputs: {NAME: {time: COLUMN}}, in seconds",
        )
    times = np.empty(len(table), np.int64)
    for index in range(len(table)):
        cell = table.cells(index)[column]
        try:
            times[index] = nanoseconds(cell)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{table.locate(index)}, column '{column}': got {cell!r}, expected seconds.", hint="write a number"
            ) from error
    return check_order(times, f"{where}, column '{column}'")


def nanoseconds(cell: object) -> int:
    """Returns seconds, a number or its text, in nanoseconds without the rounding of a float.

    Raises:
        ValueError: It is no finite number.
    """
    from decimal import Decimal, InvalidOperation

    try:
        seconds = Decimal(str(cell).strip())
    except InvalidOperation as error:
        raise ValueError(str(cell)) from error
    if not seconds.is_finite():
        raise ValueError(str(cell))
    return int((seconds * 1_000_000_000).to_integral_value())


class TableTrack:
    """The rows of a table as samples of one modality."""

    def __init__(self, table: Table, rule: Rule, times: np.ndarray) -> None:
        self.times = times
        self.window = rule.window or 1
        self._table = table
        self._rule = rule
        self._part = Rule(rule.name, rule.at, rule.field, classes=rule.classes)

    def row(self, first: int, last: int) -> np.ndarray:
        """Returns one row, or a window of rows along a new first axis."""
        if self._rule.window is None:
            return row_array(self._table, self._rule, self._table.cells(last), self._table.locate(last))
        parts = [
            row_array(self._table, self._part, self._table.cells(i), self._table.locate(i))
            for i in range(first, last + 1)
        ]
        where = self._table.locate(first)
        if any(p.shape != parts[0].shape for p in parts):
            raise DataError(
                f"{where}: the {len(parts)} rows of a window differ in shape.", hint="use rows of one shape"
            )
        return finish(replace(self._rule, window=None), np.stack(parts), where)

    def locate(self, index: int) -> str:
        """Returns where the row is in the table."""
        return self._table.locate(index)
