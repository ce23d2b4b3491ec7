"""What the cells of a text column are: the same in every row, whatever one cell alone looks like.

`1, 2.5, 3` are three numbers of one dtype, and `good film, 10, bad film` are three texts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from edgemm.errors import DataError

TEXT = "str"
"""Dtype of a column of texts some of which look like numbers."""

_LARGEST = 2**63


@dataclass(slots=True)
class Column:
    """Counts of the kinds of cells of a column; cells that are empty count as none.

    Attributes:
        whole: Cells that are whole numbers, or several that blanks separate.
        real: Cells that are other numbers.
        texts: Cells that are none.
        odd: Line and text of the first of them.
    """

    whole: int = 0
    real: int = 0
    texts: int = 0
    odd: tuple[int, str] = (0, "")

    def add(self, cell: str, line: int) -> None:
        """Counts a cell."""
        kind = _kind(cell)
        if kind is int:
            self.whole += 1
        elif kind is float:
            self.real += 1
        elif cell.strip():
            self.odd = self.odd if self.texts else (line, cell)
            self.texts += 1

    def dtype(self, where: str, name: str) -> str | None:
        """Returns `int64`, `float32` or `str`; None where all cells are texts, or paths.

        Args:
            where: The file, for messages.
            name: Of the column.

        Raises:
            DataError: Most cells are numbers, and some are not.
        """
        numbers = self.whole + self.real
        if not numbers:
            return None
        if not self.texts:
            return "float32" if self.real else "int64"
        if self.texts >= numbers:
            return TEXT
        line, cell = self.odd
        raise DataError(
            f"{where} line {line}, column '{name}': got '{cell.strip()[:40]}', expected a number, as in "
            f"{numbers:,} of {numbers + self.texts:,} rows.",
            hint="correct it, leave the row out, or name the columns that are read in a description file: inputs",
        )


def _kind(cell: str) -> type | None:
    with suppress(ValueError):
        return int if abs(int(cell)) < _LARGEST else float
    with suppress(ValueError):
        float(cell)
        return float
    parts = cell.replace(",", " ").split()
    if len(parts) < 2 or _kind(parts[0]) is None:
        return None
    kinds = {_kind(part) for part in parts}
    return None if None in kinds else float if float in kinds else int
