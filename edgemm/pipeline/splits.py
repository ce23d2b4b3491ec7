"""Which samples calibrate, which search, which evaluate: disjoint, and said in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgemm.data import Samples, Source, Subset, check_samples, open_samples, split, split_in_order, spread
from edgemm.errors import DataError, did_you_mean
from edgemm.recipe.schema import DataSection
from edgemm.tensors import IOSpec


@dataclass(frozen=True, slots=True)
class Splits:
    """The user's samples, and after `divide` the disjoint parts.

    Attributes:
        calib: What `--calib` names, or None.
        held_out: What `--eval` names, or None.
        calibration: Ranges are chosen on these.
        search: Plans are compared on these.
        evaluation: The reported accuracy is measured on these, once.
        label: Array of the labels of `evaluation`, or None.
        search_label: The same for `search` (calibration data often has no labels), or None.
    """

    calib: Source | None
    held_out: Source | None
    calibration: Samples | None = None
    search: Samples | None = None
    evaluation: Samples | None = None
    label: str | None = None
    search_label: str | None = None

    @property
    def any(self) -> Source | None:
        """Samples to export with: calibration ones, else evaluation ones."""
        return self.calib if self.calib is not None else self.held_out

    @property
    def any_part(self) -> Samples | None:
        """Samples that show sizes: calibration ones, else evaluation ones."""
        return self.calibration if self.calibration is not None else self.evaluation

    def to_json(self) -> dict[str, Any]:
        """Returns origin, size and digest of every part."""
        parts = {"calibration": self.calibration, "search": self.search, "evaluation": self.evaluation}
        return {
            name: None
            if part is None
            else {
                "samples": len(part),
                "origin": str(getattr(part, "origin", "")).rsplit("/", 1)[-1],
                "digest": getattr(part, "digest", None),
            }
            for name, part in parts.items()
        }


def open_splits(section: DataSection) -> Splits:
    """Returns the opened sources; nothing is read yet but their headers.

    Raises:
        DataError: A source is missing, truncated, empty or no set of aligned arrays, or none has the label.
    """
    calib = open_samples(section.calib) if section.calib else None
    held_out = open_samples(section.eval) if section.eval else None
    sources = [s for s in (calib, held_out) if s is not None]
    for source in sources:
        if len(source) == 0:
            raise DataError(f"{source.origin}: no samples.", hint="it needs at least one row in every array")
    names = sorted({name for source in sources for name in source.names})
    if section.label is not None and sources and section.label not in names:
        raise DataError(
            f"no array '{section.label}' for the labels (arrays: {', '.join(names)}).",
            hint=did_you_mean(section.label, names, "name the label array with --label"),
        )
    return Splits(calib, held_out)


def divide(splits: Splits, section: DataSection, io: IOSpec, warn: Callable[[str], None]) -> Splits:
    """Returns `splits` with every sample checked against the model and the disjoint parts drawn.

    A model with a state sees its samples as one stream: its parts are consecutive, others are drawn at random.

    Raises:
        DataError: A sample does not fit the model, or there are too few.
    """
    if splits.calib is not None:
        has_label = section.label is None or section.label in splits.calib.names or splits.held_out is None
        report = check_samples(splits.calib, io, label=section.label if has_label else None, role="calibration")
        for text in report.warnings:
            warn(text)
    if splits.held_out is not None:
        report = check_samples(splits.held_out, io, label=section.label, role="evaluation")
        for text in report.warnings:
            warn(text)
    parts = _parts(splits, section, io)
    evaluation: Samples | None = splits.held_out if splits.held_out is not None else parts.get("evaluation")
    calibration = parts.get("calibration")
    if calibration is not None and len(calibration) > section.max_samples:
        warn(f"{len(calibration)} calibration samples; {section.max_samples} spread evenly are used.")
        chosen = spread(len(calibration), section.max_samples)
        calibration = Subset(calibration.source, tuple(calibration.indices[i] for i in chosen))
    calib_labels = section.label if splits.calib is not None and section.label in splits.calib.names else None
    return replace(
        splits,
        calibration=calibration,
        search=parts.get("search"),
        evaluation=evaluation,
        label=section.label,
        search_label=calib_labels,
    )


def _parts(splits: Splits, section: DataSection, io: IOSpec) -> dict[str, Subset]:
    if splits.calib is None:
        return {}
    shares = {"calibration": 1.0 - section.search_share, "search": section.search_share}
    if splits.held_out is None:
        shares = {"search": section.search_share, "evaluation": section.eval_share}
        shares = {"calibration": 1.0 - sum(shares.values()), **shares}
    if shares["calibration"] <= 0:
        raise DataError(
            f"data.search_share {section.search_share} and data.eval_share {section.eval_share} leave nothing "
            "to calibrate with.",
            hint="make them add up to less than 1, or give --eval",
        )
    if io.states:
        return split_in_order(splits.calib, shares)
    return split(splits.calib, shares, section.seed)
