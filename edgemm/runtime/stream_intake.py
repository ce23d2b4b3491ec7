"""Checks samples when they are pushed, and puts the feed of a set together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemm.bundle import Manifest
from edgemm.errors import DataError
from edgemm.runtime.feeds import check_least
from edgemm.runtime.heads import HEAD, OpenHead, choose_head, head_name
from edgemm.runtime.raw import RawFeeds
from edgemm.runtime.stand_ins import Behind, StandIns
from edgemm.runtime.stream_policy import StreamPolicy, fill_value, inputs_of
from edgemm.runtime.stream_sync import SampleSet
from edgemm.tensors import IOSpec, check_feed


class Intake:
    """What the model takes, modality by modality.

    Attributes:
        newest: Modality -> the newest sample that was taken: it has the sizes that the model leaves open.
    """

    def __init__(self, manifest: Manifest, raw: RawFeeds | None = None) -> None:
        """Takes samples for the model of a bundle, made of raw ones where `raw` says how."""
        io = manifest.io
        self.newest: dict[str, Mapping[str, np.ndarray]] = {}
        self._io = io
        self._least = manifest.least
        self._raw = raw
        taken = io if raw is None else raw.io
        self._parts = {m: _part(taken, m) for m in io.modality_names()}

    def arrays(self, modality: str, sample: Any) -> dict[str, np.ndarray]:
        """Returns a checked copy of a sample, with the batch axis; steps on the host have run.

        Raises:
            DataError: An unknown modality, or an array that is not what the model takes.
        """
        part = self._parts.get(modality)
        if part is None:
            raise self._io.no_modality("push", modality)
        if not isinstance(sample, Mapping):
            if len(part.inputs) > 1:
                check_feed(part, sample)  # says that it is no mapping
            sample = {part.inputs[0].name: sample}
        arrays = {}
        for name, array in sample.items():
            if isinstance(array, str):
                array = np.array(array)
            if isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray):
                spec = part.input(name)
                array = np.array(array, order="C")
                if array.ndim == len(spec.shape) - 1 and spec.shape[:1] == (self._io.batch,):
                    array = array[None]
            arrays[name] = array
        check_feed(part, arrays)
        check_least(part, arrays, self._least)
        expected = self._io.batch if isinstance(self._io.batch, int) else 1
        for spec in part.inputs:
            if spec.shape[:1] == (self._io.batch,) and arrays[spec.name].shape[0] != expected:
                raise DataError(
                    f"push('{modality}'): got {arrays[spec.name].shape[0]} samples in '{spec.name}', "
                    f"expected {expected}.",
                    hint="push one sample at a time",
                )
        return arrays if self._raw is None else self._raw.make(arrays)

    def feed(
        self, found: SampleSet, policy: StreamPolicy, stand_ins: StandIns
    ) -> tuple[dict[str, np.ndarray], Behind]:
        """Returns the arrays of a set by input, with values for the modalities that lack a sample.

        Args:
            found: The set.
            policy: Says what goes in for what lacks.
            stand_ins: What the bundle holds for that.

        Returns:
            The feed, and the outputs of engines that do not run, since something stands for their outputs.
        """
        feed: dict[str, np.ndarray] = {}
        behind: dict[str, Mapping[str, np.ndarray] | OpenHead] = {}
        for sample in found.samples.values():
            if sample is not None:
                feed.update(sample.arrays)
        sizes = self._io.sizes(feed)
        fills = {m: policy.fill(m) for m in found.filled}
        head = choose_head(fills, stand_ins.heads)
        for modality, fill in fills.items():
            like = self.newest.get(modality)
            if head_name(fill) is not None:
                fill = f"{HEAD}:{head}"
            placed = stand_ins.find(modality, fill) if isinstance(fill, str) else None
            if placed is None:
                feed.update(fill_value(self._io, modality, fill, like, sizes))
            else:
                feed.update(placed.feed(self._io, modality, self._io.sizes(like or {}) | sizes))
                behind.update(placed.behind(self._io))
        return feed, behind


def _part(io: IOSpec, modality: str) -> IOSpec:
    """Returns the signature of one modality."""
    inputs = inputs_of(io, modality)
    return IOSpec(inputs, (), {i.name: modality for i in inputs}, batch=io.batch)
