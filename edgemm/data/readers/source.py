"""What every reader has beside its rows: an origin, a digest, what it left out, and what should be known of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from edgemm.data.samples import Sample, digest_of
from edgemm.errors import DataError

_KEPT_BYTES = 128 * 2**20
"""Most bytes of rows that a reader keeps: conversion reads a sample many times, and decoding it takes long."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many samples of one modality there were, and how many are part of a sample.

    Attributes:
        found: In the source.
        used: In at least one sample.
        unmatched: Reference samples that this modality had nothing for, and that were dropped therefore.
        why: What was asked of a match.
    """

    found: int
    used: int
    unmatched: int = 0
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


class ReaderSource:
    """The base of the readers: a `Source` whose subclass knows its length and makes a row.

    Attributes:
        origin: What the user gave.
        names: Names of the arrays.
        coverage: Modality -> how many of its samples are used.
        notes: What should be known of the data, one sentence each.
    """

    def __init__(self, origin: str, names: Iterable[str]) -> None:
        self.origin = origin
        self.names = tuple(names)
        self.coverage: dict[str, Coverage] = {}
        self.notes: list[str] = []
        self._rows: dict[int, Sample] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._rows.get(index)
        if row is None:
            row = self._row(index)
            size = sum(array.nbytes for array in row.values())
            if self._kept_bytes + size <= _KEPT_BYTES:
                self._rows[index] = row
                self._kept_bytes += size
        return row

    def _row(self, index: int) -> Sample:
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """The sha256 over every row in order."""
        return digest_of(self)

    def locate(self, index: int) -> str:
        """Returns where sample `index` is, for messages."""
        return f"{self.origin} row {index}"


def nothing_left(source: ReaderSource) -> DataError:
    """Returns the error of a source in which no sample is complete."""
    counts = ", ".join(f"{name} {c.found}" for name, c in source.coverage.items())
    return DataError(
        f"{source.origin}: no sample has every modality (found: {counts or 'nothing'}).",
        hint="correct the places of the inputs, or widen `align.within`",
    )
