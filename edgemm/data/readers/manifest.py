"""Manifests: CSV and Parquet tables that pair files and numbers by row.

A CSV file is indexed by the position of its rows and read one row at a time; of a Parquet file one row group is in
memory.
"""

from __future__ import annotations

import csv
import io
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemm._optional import require
from edgemm.data.readers.columns import Column
from edgemm.data.readers.description import Description
from edgemm.data.readers.source import ReaderSource
from edgemm.data.readers.table import Table, TableSamples, default_rules
from edgemm.errors import DataError


def open_manifest(description: Description) -> ReaderSource:
    """Returns the samples of a table, or of several tables with times.

    Raises:
        DataError: A table, column or file is missing or damaged.
        MissingExtraError: pyarrow is needed and not installed.
    """
    if description.align is not None or any(rule.table for rule in description.rules.values()):
        from edgemm.data.readers.timed_tables import open_timed

        return open_timed(description)
    table = open_table(description.source)
    rules = description.rules
    if not description.inputs and description.label is not None:
        taken = description.label.at or (description.label.name,)
        rules = {n: r for n, r in default_rules(table).items() if n not in taken} | rules
    return TableSamples(description.origin, table, rules)


def open_table(path: Path) -> Table:
    """Returns the rows of a `.csv`, `.tsv` or `.parquet` file, or of a folder of `.parquet` files.

    Raises:
        DataError: It is none, or is damaged.
        MissingExtraError: pyarrow is needed and not installed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file.", hint="`table` is relative to the description file")
    if path.is_dir():
        return ParquetTable(path, sorted(path.glob("*.parquet")))
    if path.suffix.lower() == ".parquet":
        return ParquetTable(path, [path])
    return CsvTable(path)


class CsvTable:
    """A CSV file with a header; only the position of each row is kept."""

    def __init__(self, path: Path) -> None:
        """Finds the rows.

        Raises:
            DataError: No header, a column twice, a row of another length, or no UTF-8.
        """
        self._path = path
        self.base: Path | None = path.parent
        starts, lines = array("q"), array("q")
        self._kinds: dict[str, Column] = {}
        try:
            with path.open("rb") as file:
                self._delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(file.readline())
                file.seek(0)
                at = _Lines(file)
                rows = csv.reader(at, delimiter=self._delimiter, strict=True)
                header = next(rows, None)
                if not header or not any(header):
                    raise DataError(
                        f"{path}: no header.", hint="the first line names the columns: image,audio,label"
                    )
                self.columns = tuple(name.strip() for name in header)
                self._check_header()
                self._kinds = {name: Column() for name in self.columns}
                start, line = at.position, at.number
                for cells in rows:
                    if cells:
                        self._check_row(cells, line + 1)
                        for cell, column in zip(cells, self._kinds.values(), strict=True):
                            column.add(cell, line + 1)
                        starts.append(start)
                        lines.append(line + 1)
                    start, line = at.position, at.number
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: no CSV in UTF-8: {error}.", hint="save it again as CSV, UTF-8") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="check the path") from error
        self._starts, self._lines = np.asarray(starts, np.int64), np.asarray(lines, np.int64)

    def _check_header(self) -> None:
        for name in self.columns:
            if self.columns.count(name) > 1 or not name:
                what = f"column '{name}' is there twice" if name else "a column has no name"
                raise DataError(f"{self._path}: {what}.", hint="give every column a name of its own")

    def _check_row(self, cells: list[str], line: int) -> None:
        if len(cells) != len(self.columns):
            raise DataError(
                f"{self._path} line {line}: {len(cells)} cells, the header has {len(self.columns)}.",
                hint="quote cells that hold the separator",
            )

    def __len__(self) -> int:
        return len(self._starts)

    def cells(self, index: int) -> Mapping[str, Any]:
        """Returns the texts of row `index`."""
        with self._path.open("rb") as file:
            file.seek(int(self._starts[index]))
            rows = csv.reader(_Lines(file), delimiter=self._delimiter, strict=True)
            return dict(zip(self.columns, next(rows), strict=True))

    def classes(self, column: str) -> tuple[str, ...] | None:
        """A CSV file lists no classes."""
        return None

    def dtype(self, column: str) -> str | None:
        """Returns the dtype of a column of numbers, `str` of texts that may look like some.

        Raises:
            DataError: Most cells are numbers, and some are not.
        """
        return self._kinds[column].dtype(str(self._path), column)

    def locate(self, index: int) -> str:
        """Returns `"pairs.csv line 3"`; lines count from 1, the header among them."""
        return f"{self._path} line {self._lines[index]}"


class _Lines:
    """The lines of a file as text, and where the next one starts."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.position = file.tell()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        text = line.decode("utf-8-sig" if self.position == 0 else "utf-8")
        self.position += len(line)
        self.number += 1
        return text


def _delimiter(line: bytes) -> str:
    """Returns the separator of a header: a comma, unless it has none and has semicolons or tabs."""
    return next((c for c in (",", ";", "\t") if c.encode() in line), ",")


class ParquetTable:
    """One or several Parquet files; one row group is in memory."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Reads the footers.

        Raises:
            DataError: A file is damaged, or their columns differ.
            MissingExtraError: pyarrow is not installed.
        """
        parquet = require("pyarrow.parquet", extra="arrow", why="read Parquet files")
        arrow = require("pyarrow", extra="arrow", why="read Parquet files")
        self.base: Path | None = path if path.is_dir() else path.parent
        self._files: list[tuple[Path, Any]] = []
        self._groups: list[tuple[int, int]] = []
        self._starts = [0]
        for number, file in enumerate(files):
            try:
                opened = parquet.ParquetFile(file)
            except (arrow.ArrowException, OSError) as error:
                raise DataError(f"{file}: no Parquet file: {error}.", hint="write it again") from error
            if self._files and opened.schema_arrow.names != self._files[0][1].schema_arrow.names:
                raise DataError(
                    f"{file}: has columns {', '.join(opened.schema_arrow.names)}, but {files[0]} has "
                    f"{', '.join(self._files[0][1].schema_arrow.names)}.",
                    hint="all files of a folder need the same columns",
                )
            self._files.append((file, opened))
            for group in range(opened.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(self._starts[-1] + opened.metadata.row_group(group).num_rows)
        self.columns = tuple(self._files[0][1].schema_arrow.names)
        self._kept: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._starts[-1]

    def cells(self, index: int) -> Mapping[str, Any]:
        """Returns the values of row `index`."""
        which = bisect_right(self._starts, index) - 1
        if self._kept[0] != which:
            file, group = self._groups[which]
            self._kept = (which, self._files[file][1].read_row_group(group))
        row = index - self._starts[which]
        return {name: python_value(self._kept[1].column(name)[row]) for name in self.columns}

    def classes(self, column: str) -> tuple[str, ...] | None:
        """A Parquet file lists no classes."""
        return None

    def dtype(self, column: str) -> str | None:
        """Cells have types of their own."""
        return None

    def locate(self, index: int) -> str:
        """Returns `"pairs.parquet row 3"`."""
        which = bisect_right(self._starts, index) - 1
        file = self._groups[which][0]
        first = next(s for s, (f, _) in zip(self._starts, self._groups, strict=False) if f == file)
        return f"{self._files[file][0]} row {index - first}"


def python_value(scalar: Any) -> Any:
    """Returns an Arrow scalar as text, bytes, mapping or number of its own dtype, lists as arrays."""
    kind = str(scalar.type)
    if not scalar.is_valid:
        return None
    if kind.startswith(("list", "large_list", "fixed_size_list")):
        values = scalar.values
        if str(values.type).startswith(("list", "large_list", "fixed_size_list")):
            rows = [python_value(v) for v in values]
            return np.stack(rows) if rows and all(np.shape(r) == np.shape(rows[0]) for r in rows) else rows
        return (
            values.to_numpy(zero_copy_only=False) if not str(values.type).startswith("struct") else scalar.as_py()
        )
    value = scalar.as_py()
    if isinstance(value, bool | int | float):
        return np.asarray(value, scalar.type.to_pandas_dtype())
    return value
