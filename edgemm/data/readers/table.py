"""Rows of a table as samples: cells that are paths are read, numbers are values.

`Table` is what CSV, Parquet and Arrow files have in common; `TableSamples` makes samples of any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemm.data.readers.columns import TEXT
from edgemm.data.readers.decode import FILES, decode, number, suffix_of
from edgemm.data.readers.rules import Rule, class_index, finish, join_columns
from edgemm.data.readers.source import Coverage, ReaderSource
from edgemm.data.samples import Sample
from edgemm.errors import DataError, did_you_mean

LABELS = ("label", "labels", "class", "target")
"""Columns that are labels when nothing was said; their texts are numbered in the order of the alphabet."""


class Table(Protocol):
    """Random access to the rows of a file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        ...

    @property
    def base(self) -> Path | None:
        """The folder that paths in cells are relative to; None where cells are no paths."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def cells(self, index: int) -> Mapping[str, Any]:
        """Returns the cells of row `index`: texts, numbers, bytes, lists, or `{bytes, path}`."""
        ...

    def classes(self, column: str) -> tuple[str, ...] | None:
        """Returns the names of a column's classes where the file itself lists them."""
        ...

    def dtype(self, column: str) -> str | None:
        """Returns what all cells of a column of text are: `int64`, `float32` or `str`; None: what each one is."""
        ...

    def locate(self, index: int) -> str:
        """Returns where row `index` is: `"pairs.csv line 3"`."""
        ...


class TableSamples(ReaderSource):
    """Each row is a sample."""

    def __init__(self, origin: str, table: Table, rules: Mapping[str, Rule]) -> None:
        """Checks that every column is there and every file that the rows name.

        Raises:
            DataError: A column or a file is missing, or a label's text is no class.
        """
        rules = rules or default_rules(table)
        self.table = table
        self._rules, self.classes = resolve(origin, table, rules)
        super().__init__(origin, self._rules)
        self.notes += check_files(table, self._rules)
        self.notes += [
            f"{origin}: '{name}' has {len(classes)} classes, numbered {_numbered(classes)}."
            for name, classes in self.classes.items()
        ]
        self.coverage = {name: Coverage(len(table), len(table)) for name in self._rules}

    def __len__(self) -> int:
        return len(self.table)

    def _row(self, index: int) -> Sample:
        cells, where = self.table.cells(index), self.table.locate(index)
        return {name: row_array(self.table, rule, cells, where) for name, rule in self._rules.items()}

    def locate(self, index: int) -> str:
        """Returns `"pairs.csv line 3"`."""
        return self.table.locate(index)


def default_rules(table: Table) -> dict[str, Rule]:
    """Returns one rule for each column, named like it."""
    return {name: Rule(name) for name in table.columns}


def resolve(
    origin: str, table: Table, rules: Mapping[str, Rule]
) -> tuple[dict[str, Rule], dict[str, tuple[str, ...]]]:
    """Returns the rules with their columns, dtype and classes of text labels, and array -> its classes.

    Raises:
        DataError: A column is not there, or holds numbers in most rows and something else in others.
    """
    found, named = {}, {}
    for name, rule in rules.items():
        columns: list[str] = []
        for pattern in rule.at or (name,):
            matches = [pattern] if pattern in table.columns else []
            if not matches and any(c in pattern for c in "*?["):
                matches = [c for c in table.columns if fnmatchcase(c, pattern)]
            if not matches:
                raise DataError(
                    f"{origin}: no column '{pattern}' for '{name}' (columns: {', '.join(table.columns)}).",
                    hint=did_you_mean(pattern, table.columns, f"say it: inputs: {{{name}: {{column: ...}}}}"),
                )
            columns += matches
        rule = replace(rule, at=tuple(columns))
        if rule.classes is None and len(columns) == 1:
            classes = table.classes(columns[0])
            if classes is None and (name in LABELS or columns[0] in LABELS):
                classes = _text_classes(table, columns[0])
                rule = replace(rule, classes=classes)
            if classes:
                named[name] = classes
        found[name] = rule if rule.classes is not None else replace(rule, dtype=_dtype(table, rule))
    return found, named


def _dtype(table: Table, rule: Rule) -> str | None:
    """Returns the dtype of a rule: what it says, else float32 where a column has numbers that are not whole."""
    if rule.dtype is not None:
        return rule.dtype
    kinds = {table.dtype(column) for column in rule.at}
    if any(value is not None for value in (rule.scale, rule.mean, rule.std)):
        return None
    if kinds == {TEXT}:
        return None if rule.shape else TEXT
    return "float32" if "float32" in kinds and kinds <= {"float32", "int64"} else None


def row_array(table: Table, rule: Rule, cells: Mapping[str, Any], where: str) -> np.ndarray:
    """Returns the array that one row's cells make by `rule`, whose columns are resolved.

    Raises:
        DataError: A cell is empty, names a file that is not there, or cannot be what the rule says.
    """
    if len(rule.at) == 1:
        return _cell(table, rule, cells[rule.at[0]], f"{where}, column '{rule.at[0]}'")
    numbers = _numbers([cells[column] for column in rule.at])
    if numbers is not None:
        return finish(rule, numbers, where)
    plain = Rule(rule.name)
    parts = [_cell(table, plain, cells[column], f"{where}, column '{column}'") for column in rule.at]
    if any(p.dtype.kind == "f" for p in parts):
        parts = [p.astype(np.float32) if p.dtype.kind in "iub" else p for p in parts]
    return finish(rule, join_columns(parts), where)


def _numbers(cells: Sequence[Any]) -> np.ndarray | None:
    """Returns texts that are all numbers as int64 or float32, or None."""
    if not all(isinstance(cell, str) for cell in cells):
        return None
    for kind, dtype in ((int, np.int64), (float, np.float32)):
        try:
            return np.asarray([kind(cell) for cell in cells], dtype)
        except (ValueError, OverflowError):
            continue
    return None


def _cell(table: Table, rule: Rule, cell: Any, where: str) -> np.ndarray:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise DataError(f"{where}: the cell is empty.", hint="fill it in, or leave the row out")
    if rule.classes is not None and not isinstance(cell, bytes | Mapping):
        return np.asarray(class_index(rule, str(cell).strip(), where))
    if isinstance(cell, Mapping):
        return _with_bytes(table, rule, cell, where)
    if isinstance(cell, bytes):
        return decode(cell, "", rule, where)
    if isinstance(cell, str):
        if rule.dtype == TEXT:
            return np.asarray(cell)
        path = path_of(table, cell)
        if path is not None:
            return decode(read(path, where), suffix_of(cell), rule, f"{where} ({cell})")
        try:
            return finish(rule, number(cell, where), where)
        except DataError:
            if rule.dtype or rule.scale or rule.shape:
                raise
            return np.asarray(cell)
    array = np.asarray(cell)
    if array.dtype.kind == "O":
        raise DataError(
            f"{where}: holds {type(cell).__name__} of unequal lengths or kinds, expected numbers.",
            hint="store arrays of one shape, or paths of .npy files",
        )
    return finish(rule, array, where)


def _with_bytes(table: Table, rule: Rule, cell: Mapping[str, Any], where: str) -> np.ndarray:
    data, path = cell.get("bytes"), cell.get("path")
    if data is not None:
        return decode(data, suffix_of(path or ""), rule, where)
    if isinstance(path, str) and table.base is not None:
        return decode(read(table.base / path, where), suffix_of(path), rule, f"{where} ({path})")
    raise DataError(
        f"{where}: holds neither bytes nor a path (members: {', '.join(cell)}).", hint="name a column of arrays"
    )


def path_of(table: Table, cell: str) -> Path | None:
    """Returns the file that a cell names, or None where it is no path."""
    text = cell.strip()
    if table.base is None or suffix_of(text) not in FILES or len(text) > 4096:
        return None
    return table.base / text


def read(path: Path, where: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{where}: {path}: {error.strerror or error}.", hint="paths are relative to the table's folder"
        ) from error


def check_files(table: Table, rules: Mapping[str, Rule]) -> list[str]:
    """Returns a note for each column whose paths lead out of the table's folder, after every file was looked for.

    Raises:
        DataError: A file is not there; the message names the row, the column and how many more are missing.
    """
    if table.base is None:
        return []
    home = table.base.resolve()
    outside: dict[str, str] = {}
    missing: list[str] = []
    first = table.cells(0) if len(table) else {}
    columns = sorted({c for rule in rules.values() for c in rule.at if _is_path(table, first.get(c))})
    for index in range(len(table) if columns else 0):
        cells = table.cells(index)
        for column in columns:
            cell = cells[column]
            path = path_of(table, cell) if isinstance(cell, str) else None
            if path is None:  # an empty cell is told when the row is read
                continue
            if not path.is_file():
                missing.append(f"{table.locate(index)}, column '{column}': {cell}")
            elif column not in outside and not path.resolve().is_relative_to(home):
                outside[column] = cell
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]}: no such file{more}.",
            hint=f"paths are relative to {table.base}; correct or drop the rows",
        )
    return [f"column '{c}' has paths outside of {table.base}, for example {p}." for c, p in outside.items()]


def _is_path(table: Table, cell: Any) -> bool:
    return isinstance(cell, str) and path_of(table, cell) is not None


def _text_classes(table: Table, column: str) -> tuple[str, ...] | None:
    """Returns the different texts of a column in alphabetical order, or None for numbers and paths."""
    found: set[str] = set()
    for index in range(len(table)):
        cell = table.cells(index)[column]
        if not isinstance(cell, str) or path_of(table, cell) is not None or (not found and _is_number(cell)):
            return None
        found.add(cell.strip())
    return tuple(sorted(found)) if found else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbered(classes: Sequence[str]) -> str:
    shown = ", ".join(f"{name}={index}" for index, name in enumerate(classes[:5]))
    return shown + (", ..." if len(classes) > 5 else "")
