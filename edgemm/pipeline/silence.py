"""Samples with one modality silent: plans are searched and variants judged on these as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from edgemm.data import Blank, BlankValues, Samples, blank_twins, blank_values, never_blank, thinned, with_blanks
from edgemm.recipe import Recipe
from edgemm.tensors import IOSpec

BLANKS = 500
"""At most this many samples are scored with a modality blank, spread evenly: each modality is one more pass."""


@dataclass
class Silence:
    """What a silent modality of one model looks like.

    Attributes:
        recipe: Says what blank is, and whether blanks count.
        io: The model's signature.
        calibration: The samples that means are taken over.
    """

    recipe: Recipe
    io: IOSpec
    calibration: Samples

    @cached_property
    def values(self) -> BlankValues:
        """What every input gives."""
        blanks = {n: Blank.parse(i.blank) for n, i in self.recipe.inputs.items() if i.blank is not None}
        return blank_values(self.io, self.calibration, blanks, self.recipe.data.seed)

    def mixed(self) -> tuple[Samples, Mapping[str, int]]:
        """Returns the calibration samples with a share of blanks in them, and how many of each modality."""
        data = self.recipe.data
        return with_blanks(self.calibration, self.io, data.blank_share, data.seed, self.values)

    def warnings(self) -> tuple[str, ...]:
        """Returns what is never blank although the budget covers blanks."""
        return tuple(never_blank(self.io, self.values)) if self.recipe.data.blank_share else ()

    def twins(self, samples: Samples) -> Mapping[str, Samples]:
        """Returns the samples with one modality blank each, where the budget covers blanks."""
        if self.recipe.data.blank_share == 0:
            return {}
        if len(samples) > BLANKS and not self.io.states:
            samples = thinned(samples, BLANKS)
        return blank_twins(samples, self.io, self.values)
