"""Samples in which now and then one modality is silent, as on the device when a sensor drops out.

A model calibrated on complete samples alone may agree with float on a third of those that lack a modality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemm.data.samples import Sample, Samples, locate, names_of, origin_of
from edgemm.tensors import IOSpec


@dataclass(frozen=True, slots=True)
class Blanked:
    """Another source with zeros for the float inputs of one modality in some samples.

    Attributes:
        source: The samples.
        inputs: Sample index -> names of the arrays that are zeros there.
    """

    source: Samples
    inputs: dict[int, frozenset[str]]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        blank = self.inputs.get(index, frozenset())
        return {k: np.zeros_like(v) if k in blank else v for k, v in sample.items()} if blank else sample

    @property
    def origin(self) -> str:
        """The source's origin."""
        return origin_of(self.source)

    @property
    def names(self) -> tuple[str, ...]:
        """The source's names."""
        return names_of(self.source)

    def locate(self, index: int) -> str:
        """Returns where sample `index` is in the source."""
        return locate(self.source, index)


def with_blanks(samples: Samples, io: IOSpec, share: float, seed: int) -> tuple[Blanked, dict[str, int]]:
    """Returns `samples` with `share` of them blank per modality, and how many are blank by modality.

    No sample loses two modalities, and a model of one modality loses none. Only float inputs become zeros: token
    ids and masks have no zero that means silence.
    """
    modalities: dict[str, set[str]] = {}
    for spec in io.feed_inputs:
        if spec.dtype.startswith("float"):
            modalities.setdefault(io.modalities[spec.name], set()).add(spec.name)
    count = min(round(share * len(samples)), len(samples) // (len(modalities) + 1))
    if len(io.modality_names()) < 2 or count == 0:
        return Blanked(samples, {}), {}
    order = np.random.default_rng(seed).permutation(len(samples))
    blank = {}
    for number, names in enumerate(modalities.values()):
        for index in order[number * count : (number + 1) * count]:
            blank[int(index)] = frozenset(names)
    return Blanked(samples, blank), dict.fromkeys(modalities, count)
