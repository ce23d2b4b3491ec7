"""The fused task metric of a session on one split, against the float model on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.compare import OutputParity
from edgemm.data import Samples
from edgemm.metrics import Metric, choose_output, collect_labels, collect_outputs, metric, score
from edgemm.recipe.schema import EvaluateSection
from edgemm.runtime.fusion import FusionSession


def default_metric(samples: Samples, label: str | None) -> str:
    """Returns accuracy for integer labels, mae for float ones, agreement with the float model without labels."""
    if label is None:
        return "agreement"
    return "mae" if np.asarray(samples[0][label]).dtype.kind == "f" else "accuracy"


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
        parity.add(self.reference[self.output], outputs[self.output], 0)
        return value, self.metric.drop(self.float_score, value), parity.max_abs

    def to_json(self, value: float, drop: float, max_error: float) -> dict[str, Any]:
        """Returns the `accuracy` of a variant, without the budget."""
        return {
            "metric": self.metric.name,
            "output": self.output,
            "float": self.float_score,
            "variant": value,
            "drop": drop,
            "samples": len(self.samples),
            "split": "evaluation",
            "percent": self.metric.percent,
            "max_abs": max_error,
        }


def score_float(session: FusionSession, samples: Samples, label: str | None, section: EvaluateSection) -> Scorer:
    """Returns the scorer of `samples` with the float model's outputs and score.

    Raises:
        DataError: No such metric, output or label, or the labels do not fit the output.
    """
    chosen = metric(section.metric or default_metric(samples, label))
    if chosen.needs_labels and label is None:
        chosen = metric("agreement")
    output = choose_output(session.io, section.output)
    reference = collect_outputs(session.run, session.io, samples, batch=section.batch, reset=session.reset_state)
    labels = collect_labels(samples, label) if label is not None else None
    value = score(chosen, reference, output, labels=labels, reference=reference)
    return Scorer(chosen, output, samples, labels, section.batch, reference, value)
