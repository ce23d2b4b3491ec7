"""The sections of a recipe about sensors: how their samples become sets, and what stands for those that lack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from edgemm.errors import RecipeError, did_you_mean
from edgemm.recipe.section import Section, refused
from edgemm.runtime.heads import head_name
from edgemm.runtime.stand_ins import STORED
from edgemm.runtime.stream_policy import FILLS, Drop

Seconds = Annotated[float, Field(ge=0)]


def _known_fill(fill: str) -> str:
    kind, _, number = fill.partition(":")
    if head_name(fill) is not None:
        return fill
    if kind == "constant":
        try:
            float(number)
        except ValueError as error:
            got = f"got '{fill}', expected constant:VALUE."
            raise refused(RecipeError(got, hint="give a number: constant:0.5")) from error
    elif fill not in (known := (*FILLS, *STORED)):
        got = f"got '{fill}', expected one of {', '.join(known)} or head:NAME."
        raise refused(RecipeError(got, hint=did_you_mean(fill, known, "docs/streams.md says what each puts in")))
    return fill


Fill = Annotated[str, AfterValidator(_known_fill)]
"""What goes in where a modality has no sample."""


class StreamSection(Section):
    """How a device makes sets of samples from sensors that have their own rates: defaults of `session.stream`.

    What is not given is as `edgemm.runtime.stream_policy.StreamPolicy` has it.
    """

    trigger: Annotated[float, Field(gt=0)] | str | None = Field(
        default=None,
        description="What a set is made for: each sample of a modality, `any` sample, or a rate in hertz.",
    )
    optional: dict[str, Fill] | None = Field(
        default=None,
        description="Modality -> what goes in where it has no sample: last, zeros, constant:VALUE, blank (what "
        "inputs.NAME.blank says), mean (of what its encoder gives), learned (missing.learn), "
        "head:NAME (missing.heads), fail.",
    )
    window: Seconds | dict[str, Seconds] | None = Field(
        default=None, description="Most seconds between a set and a sample of it; one number, or by modality."
    )
    max_age: Seconds | dict[str, Seconds] | None = Field(
        default=None, description="Most seconds that a sample may be older than its set; one, or by modality."
    )
    offset: dict[str, float] | None = Field(
        default=None, description="Modality -> seconds that are added to its capture times."
    )
    timeout: Seconds | None = Field(
        default=None, description="Seconds that a set waits for samples; default: the largest window."
    )
    queue: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Samples of each modality that wait."
    )
    drop: Drop | None = Field(default=None, description="What gives way when a queue is full.")
    reject_nan: bool | None = Field(default=None, description="Refuse samples with NaN in them.")

    def given(self) -> dict[str, Any]:
        """Returns the fields that the recipe sets."""
        return self.model_dump(exclude_none=True)


class MissingSection(Section):
    """What is made for modalities that may lack a sample on the device."""

    learn: tuple[str, ...] = Field(
        default=(),
        description="Modalities for which a value is trained that stands for what their encoder gives; "
        "it is kept where it is better than the mean on samples that it was not trained on; not for models "
        "with states.",
    )
    heads: dict[str, Path] = Field(
        default_factory=dict,
        description="Name -> a trained model that takes what the encoders of some modalities give and gives what "
        "the model gives: the fill head:NAME of the other modalities. Its inputs are called after the modalities.",
    )
    report: bool = Field(
        default=False,
        description="Score what ships with every subset of the modalities and every fill: report/modalities.json.",
    )
