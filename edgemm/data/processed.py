"""Samples that go through the steps of preprocessing as they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemm.data.samples import Sample, Source, digest_of
from edgemm.errors import DataError
from edgemm.preprocess.front import InputSteps

_KEPT_BYTES = 256 * 2**20
"""Most bytes of rows that are kept: evaluation reads every sample many times."""


class Processed:
    """Another source with what the model takes in the place of raw arrays. Labels go through."""

    def __init__(self, source: Source, ways: Sequence[InputSteps]) -> None:
        """Makes each input in `ways` of its raw array in `source`."""
        self._source = source
        self._ways = tuple(ways)
        self._kept: dict[int, Sample] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        raw = self._source[index]
        made = {}
        for way in self._ways:
            if way.raw.name in raw:
                row = np.asarray(raw[way.raw.name])
                self._check(index, way, row)
                made[way.input] = way.row(row)
        gone = {way.raw.name for way in self._ways}
        sample = {name: row for name, row in raw.items() if name not in gone} | made
        size = sum(np.asarray(row).nbytes for row in made.values())
        if self._bytes + size <= _KEPT_BYTES:
            self._bytes += size
            self._kept[index] = sample
        return sample

    def _check(self, index: int, way: InputSteps, row: np.ndarray) -> None:
        """Checks a raw row before the steps see it."""
        dtype = "str" if row.dtype.kind == "U" else row.dtype.name
        wanted = way.raw.shape[1:]
        fits = len(row.shape) == len(wanted) and all(
            got == want for got, want in zip(row.shape, wanted, strict=True) if isinstance(want, int)
        )
        if dtype != way.raw.dtype or not fits:
            raise DataError(
                f"{self.locate(index)}: raw array '{way.raw.name}' is {dtype} {list(row.shape)}, expected "
                f"{way.raw.dtype} [{', '.join(map(str, wanted))}].",
                hint=f"samples hold raw data: correct inputs.{way.input}.raw in the recipe, or the samples",
            )

    @property
    def origin(self) -> str:
        """The source's origin."""
        return self._source.origin

    @property
    def source(self) -> Source:
        """The samples that the steps read."""
        return self._source

    @property
    def names(self) -> tuple[str, ...]:
        """The source's names, those of inputs for those of raw arrays."""
        names = self._source.names
        made = tuple(way.input for way in self._ways if way.raw.name in names)
        gone = {way.raw.name for way in self._ways}
        return tuple(name for name in names if name not in gone) + made

    @property
    def digest(self) -> str:
        """The sha256 over what the steps make, in order."""
        return digest_of(self)

    def locate(self, index: int) -> str:
        """Returns where sample `index` is in the source."""
        return self._source.locate(index)
