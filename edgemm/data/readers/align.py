"""Modalities with rates of their own put together by time: each sample of one finds its partners in the others.

A match is the nearest sample in time, or the last one that is not later, within a tolerance. A reference sample
that lacks a partner is left out and counted. Each reference sample is used once; a partner may serve several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgemm.data.readers.description import Align
from edgemm.data.readers.source import Coverage, ReaderSource, nothing_left
from edgemm.data.samples import Sample
from edgemm.errors import DataError, did_you_mean


class Track(Protocol):
    """Samples of one modality with their times."""

    @property
    def times(self) -> np.ndarray:
        """Times in nanoseconds, int64, ascending."""
        ...

    @property
    def window(self) -> int:
        """How many samples one row is made of, the last of which is the matching one."""
        ...

    def row(self, first: int, last: int) -> np.ndarray:
        """Returns the row made of the samples `first` to `last`, both included, by the track's rule."""
        ...

    def locate(self, index: int) -> str:
        """Returns where sample `index` is, for messages."""
        ...


@dataclass(frozen=True, slots=True)
class Matches:
    """What alignment found.

    Attributes:
        indices: Array -> for each sample, the index in its track.
        coverage: Array -> how many of its samples are used.
        reference: The array whose samples are the samples.
    """

    indices: Mapping[str, np.ndarray]
    coverage: Mapping[str, Coverage]
    reference: str


def align(times: Mapping[str, np.ndarray], how: Align, windows: Mapping[str, int] | None = None) -> Matches:
    """Returns which samples belong together.

    Args:
        times: Array -> ascending times in nanoseconds.
        how: Reference, tolerance, method and offsets.
        windows: Array -> how many samples must lie before and at a match; 1 for those not listed.
    """
    windows = windows or {}
    shifted = {n: t + np.int64(round(how.offset.get(n, 0.0) * 1e9)) for n, t in times.items()}
    reference = how.to or min(times, key=lambda name: len(times[name]))
    wanted = shifted[reference]
    found: dict[str, np.ndarray] = {}
    usable: dict[str, np.ndarray] = {}
    for name, own in shifted.items():
        index = np.arange(len(wanted)) if name == reference else _nearest(own, wanted, how.method)
        near = np.zeros(len(wanted), bool)
        there = index >= 0
        near[there] = np.abs(own[index[there]] - wanted[there]) <= round(how.tolerance(name) * 1e9)
        found[name], usable[name] = index, near & (index >= windows.get(name, 1) - 1)
    complete = np.logical_and.reduce(list(usable.values())) if len(wanted) else np.zeros(0, bool)
    coverage = {}
    for name, index in found.items():
        why = "" if name == reference else f"{how.method} within {how.tolerance(name):g} s of '{reference}'"
        if windows.get(name, 1) > 1:
            why += f"{', ' if why else ''}{windows[name]} samples up to it"
        used = len(np.unique(index[complete]))
        coverage[name] = Coverage(len(times[name]), used, int((~usable[name]).sum()), why)
    return Matches({n: i[complete] for n, i in found.items()}, coverage, reference)


def _nearest(times: np.ndarray, wanted: np.ndarray, method: str) -> np.ndarray:
    """Returns for each wanted time the index of its match, -1 where there is none."""
    after = np.searchsorted(times, wanted, side="right")
    before = after - 1
    if method == "previous" or not len(times):
        return before
    later = np.minimum(after, len(times) - 1)
    earlier = np.maximum(before, 0)
    closer = np.abs(times[later] - wanted) < np.abs(wanted - times[earlier])
    return np.where(closer, later, earlier)


class AlignedSamples(ReaderSource):
    """Samples made of tracks."""

    def __init__(self, origin: str, tracks: Mapping[str, Track], how: Align) -> None:
        """Matches the tracks.

        Raises:
            DataError: No reference of this name, a track's times go backwards, or no sample has every modality.
        """
        super().__init__(origin, tracks)
        if how.to and how.to not in tracks:
            raise DataError(
                f"{origin}: align.to: no input '{how.to}' (inputs: {', '.join(tracks)}).",
                hint=did_you_mean(how.to, tracks, "name the modality that the others are held to"),
            )
        self._tracks = dict(tracks)
        times = {name: track.times for name, track in tracks.items()}
        matches = align(times, how, {name: track.window for name, track in tracks.items()})
        self._indices = matches.indices
        self.coverage = dict(matches.coverage)
        self._reference = matches.reference
        if not len(self):
            raise nothing_left(self)
        total = len(times[matches.reference])
        for name, found in self.coverage.items():
            if found.unmatched:
                self.notes.append(
                    f"{origin}: {found.unmatched} of {total} samples of '{matches.reference}' are left out: "
                    f"'{name}' has no match ({found.why})."
                )

    def __len__(self) -> int:
        return len(self._indices[self._reference])

    def _row(self, index: int) -> Sample:
        row = {}
        for name, track in self._tracks.items():
            last = int(self._indices[name][index])
            row[name] = track.row(last - track.window + 1, last)
        return row

    def locate(self, index: int) -> str:
        """Returns where the reference sample is."""
        return self._tracks[self._reference].locate(int(self._indices[self._reference][index]))


def check_order(times: np.ndarray, where: str) -> np.ndarray:
    """Returns `times` as they are.

    Raises:
        DataError: They go backwards; the message says where.
    """
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        raise DataError(
            f"{where}: the time goes backwards after sample {back[0]} ({times[back[0]]} ns, then "
            f"{times[back[0] + 1]} ns).",
            hint="sort the rows by time, or choose another `time`",
        )
    return times
