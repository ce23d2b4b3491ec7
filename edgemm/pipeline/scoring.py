"""The fused task metric of a session on one split, against the float model on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.compare import OutputParity
from edgemm.data import Samples
from edgemm.errors import DataError
from edgemm.metrics import (
    Metric,
    choose_output,
    collect_labels,
    collect_outputs,
    is_classes,
    metric,
    metric_for,
    numeric_parts,
    score,
)
from edgemm.recipe.schema import EvaluateSection
from edgemm.runtime.fusion import FusionSession


def choose_metric(section: EvaluateSection, samples: Samples, label: str | None) -> Metric:
    """Returns the metric for `samples`: what was asked for, as far as there are labels for it.

    The default is accuracy for integer labels, mae for float ones, agreement with the float model without labels.

    Raises:
        DataError: No such metric.
    """
    if label is None and section.metric is not None and metric(section.metric).needs_labels:
        return metric("agreement")
    return metric_for(section.metric, samples, label)


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


def outputs_of(session: FusionSession, samples: Samples, batch: int) -> dict[str, np.ndarray]:
    """Returns a session's result outputs over all samples, from a fresh state."""
    return collect_outputs(session.run, session.io, samples, batch=batch, reset=session.reset_state)


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

    def measure(self, session: FusionSession) -> dict[str, Any]:
        """Returns the `accuracy` of a session, without the budget. A number that is none (NaN) is null.

        `drop` is positive when the session is worse than the float model. `cosine` is the mean over samples of the
        cosine similarity with the float model's output, `max_abs` the largest difference of any value of it on any
        sample: a mean hides a sample that goes wrong.
        """
        outputs = outputs_of(session, self.samples, self.batch)
        value = score(self.metric, outputs, self.output, labels=self.labels, reference=self.reference)
        cosine = score(metric("cosine"), outputs, self.output, labels=None, reference=self.reference)
        parity = OutputParity()
        pairs = zip(numeric_parts(self.reference[self.output]), numeric_parts(outputs[self.output]), strict=True)
        for sample, (reference, other) in enumerate(pairs):
            parity.add(reference, other, sample)
        return {
            "metric": self.metric.name.rsplit("/", 1)[-1],  # not the folder of a user's file
            "output": self.output,
            "float": self.float_score,
            "variant": _finite(value),
            "drop": _finite(self.metric.drop(self.float_score, value)),
            "samples": len(self.samples),
            "split": "evaluation",
            "percent": self.metric.percent,
            "cosine": _finite(cosine),
            "max_abs": _finite(parity.max_abs),
        }


def score_float(session: FusionSession, samples: Samples, label: str | None, section: EvaluateSection) -> Scorer:
    """Returns the scorer of `samples` with the float model's outputs and score.

    Raises:
        DataError: No such metric, output or label, the labels do not fit the output, or the score is no number.
    """
    chosen = choose_metric(section, samples, label)
    output = choose_output(session.io, section.output)
    reference = outputs_of(session, samples, section.batch)
    if section.metric is None and chosen.name == "agreement" and not is_classes(reference[output]):
        chosen = metric("cosine")
    labels = collect_labels(samples, label) if label is not None else None
    value = score(chosen, reference, output, labels=labels, reference=reference)
    if not math.isfinite(value):
        raise DataError(
            f"metric '{chosen.name}': the float model scores {value} on {len(samples)} evaluation samples.",
            hint=f"does the output '{output}' overflow, or is it the wrong one for this metric (--output-name)?",
        )
    return Scorer(chosen, output, samples, labels, section.batch, reference, value)


@dataclass(frozen=True, slots=True)
class Scorers:
    """What scores variants on the evaluation samples, complete and with each modality blank.

    Attributes:
        complete: On the complete ones.
        blank: Modality -> on those with it blank.
        budget: Largest drop that may ship.
    """

    complete: Scorer
    blank: Mapping[str, Scorer]
    budget: float

    @classmethod
    def of_float(
        cls,
        session: FusionSession,
        samples: Samples,
        twins: Mapping[str, Samples],
        label: str | None,
        section: EvaluateSection,
    ) -> Scorers:
        """Returns the scorers of `samples` and of their blank `twins`, from the float model's outputs.

        Raises:
            DataError: As `score_float`.
        """
        complete = score_float(session, samples, label, section)
        blank = {name: score_float(session, twin, label, section) for name, twin in twins.items()}
        return cls(complete, blank, section.max_drop)

    def measure(self, session: FusionSession, tell: Callable[[str], None]) -> dict[str, Any]:
        """Returns the `accuracy` of a session; `tell` is told what is scored: `""`, or `", audio blank"`."""
        tell("")
        accuracy = self.complete.measure(session) | {"budget": self.budget}
        blank = {}
        for name, scorer in self.blank.items():
            tell(f", {name} blank")
            blank[name] = scorer.measure(session)
        return accuracy | ({"blank": blank} if blank else {})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
