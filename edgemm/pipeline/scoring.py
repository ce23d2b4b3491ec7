"""The fused task metric of a session on one split, against the float model on the same samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.compare import OutputParity
from edgemm.data import Samples
from edgemm.errors import DataError
from edgemm.metrics import Metric, choose_output, collect_labels, collect_outputs, metric, numeric_parts, score
from edgemm.recipe.schema import EvaluateSection
from edgemm.runtime.fusion import FusionSession


def default_metric(samples: Samples, label: str | None) -> str:
    """Returns accuracy for integer labels, mae for float ones, agreement with the float model without labels."""
    if label is None:
        return "agreement"
    return "mae" if np.asarray(samples[0][label]).dtype.kind == "f" else "accuracy"


def check_metric(section: EvaluateSection, label: str | None) -> None:
    """Checks the metric that was asked for before anything is computed; a user's own is loaded, which runs it.

    Raises:
        DataError: No such metric, or it needs labels and there is no `label`.
    """
    if section.metric is not None and metric(section.metric).needs_labels and label is None:
        raise DataError(
            f"metric '{section.metric}' needs labels.",
            hint="name the label array with --label, or use --metric agreement",
        )


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores sessions on one split. Made by `score_float`, which keeps the float model's outputs."""

    metric: Metric
    output: str
    samples: Samples
    labels: np.ndarray | None
    batch: int
    reference: Mapping[str, np.ndarray]
    float_score: float

    def drop(self, session: FusionSession) -> tuple[float, float, float]:
        """Returns `(score, drop, largest error)`.

        The drop is positive when the session is worse than the float model. The largest error is the largest
        absolute difference of any value of the scored output on any sample: a mean hides a sample that goes
        wrong.
        """
        outputs = collect_outputs(
            session.run, session.io, self.samples, batch=self.batch, reset=session.reset_state
        )
        value = score(self.metric, outputs, self.output, labels=self.labels, reference=self.reference)
        parity = OutputParity()
        pairs = zip(numeric_parts(self.reference[self.output]), numeric_parts(outputs[self.output]), strict=True)
        for sample, (reference, other) in enumerate(pairs):
            parity.add(reference, other, sample)
        return value, self.metric.drop(self.float_score, value), parity.max_abs

    def to_json(self, value: float, drop: float, max_error: float) -> dict[str, Any]:
        """Returns the `accuracy` of a variant, without the budget. A number that is none (NaN) is null."""
        return {
            "metric": self.metric.name.rsplit("/", 1)[-1],  # not the folder of a user's file
            "output": self.output,
            "float": self.float_score,
            "variant": _finite(value),
            "drop": _finite(drop),
            "samples": len(self.samples),
            "split": "evaluation",
            "percent": self.metric.percent,
            "max_abs": _finite(max_error),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def score_float(session: FusionSession, samples: Samples, label: str | None, section: EvaluateSection) -> Scorer:
    """Returns the scorer of `samples` with the float model's outputs and score.

    Raises:
        DataError: No such metric, output or label, the labels do not fit the output, or the score is no number.
    """
    chosen = metric(section.metric or default_metric(samples, label))
    output = choose_output(session.io, section.output)
    reference = collect_outputs(session.run, session.io, samples, batch=section.batch, reset=session.reset_state)
    labels = collect_labels(samples, label) if label is not None else None
    value = score(chosen, reference, output, labels=labels, reference=reference)
    if not math.isfinite(value):
        raise DataError(
            f"metric '{chosen.name}': the float model scores {value} on {len(samples)} evaluation samples.",
            hint=f"does the output '{output}' overflow, or is it the wrong one for this metric (--output-name)?",
        )
    return Scorer(chosen, output, samples, labels, section.batch, reference, value)
