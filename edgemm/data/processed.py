"""Samples that go through the steps of preprocessing as they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemm.data.samples import Sample, Source, digest_of
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
        made = {way.input: way.row(raw[way.raw.name]) for way in self._ways if way.raw.name in raw}
        gone = {way.raw.name for way in self._ways}
        sample = {name: row for name, row in raw.items() if name not in gone} | made
        size = sum(np.asarray(row).nbytes for row in made.values())
        if self._bytes + size <= _KEPT_BYTES:
            self._bytes += size
            self._kept[index] = sample
        return sample

    @property
    def origin(self) -> str:
        """The source's origin."""
        return self._source.origin

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
