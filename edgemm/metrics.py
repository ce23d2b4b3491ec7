"""How good outputs are: task metrics against labels, and agreement with the float model where there are none.

Every metric is a function of all outputs and labels, so a metric that is no mean over samples (F1, AUROC) is
right whatever the batch size. Outputs that a metric reads are kept; the samples are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm._optional import require
from edgemm.data import Samples, batches, load_attribute
from edgemm.data.reader import is_reference
from edgemm.errors import DataError, did_you_mean
from edgemm.tensors import Feed, IOSpec

Outputs = Mapping[str, np.ndarray]
"""Output name -> array over all samples, first axis = sample. Rows of different shapes (sequences of any length)
are an array of objects, one array per sample."""

Run = Callable[[Feed], Mapping[str, np.ndarray]]
"""One call of a model: inputs by name to outputs by name."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that says how good outputs are.

    Attributes:
        name: As the user gave it.
        higher_is_better: Direction; a drop is `float - variant` when True, `variant - float` when False.
        percent: The value is a share in [0, 1] and is shown as a percentage.
        needs_labels: Compares with labels; otherwise with the float model's outputs.
        function: `(outputs, chosen output name, target) -> value`; the target is the labels, or the float
            model's chosen output.
    """

    name: str
    higher_is_better: bool
    percent: bool
    needs_labels: bool
    function: Callable[[Outputs, str, np.ndarray | None], float]

    def drop(self, before: float, after: float) -> float:
        """Returns how much worse `after` is than `before`; negative when it is better."""
        return before - after if self.higher_is_better else after - before


def metric(name: str) -> Metric:
    """Returns the metric called `name`, or the user's own: `FILE.py:FUNC`.

    A user's function is called as `func(outputs: dict[str, array], labels: array | None) -> float` with all
    samples at once; higher is better.

    Raises:
        DataError: No such metric, or the user's file cannot be loaded.
    """
    if name in METRICS:
        return METRICS[name]
    if is_reference(name):
        function = load_attribute(name)
        if not callable(function):
            raise DataError(
                f"{name} is a {type(function).__name__}, expected a function.",
                hint="write def FUNC(outputs, labels): return a number, higher is better",
            )
        return Metric(name, True, False, False, _user_metric(name, function))
    raise DataError(
        f"no metric '{name}' (metrics: {', '.join(METRICS)}).",
        hint=did_you_mean(name, METRICS, "or give your own function: FILE.py:FUNC"),
    )


def metric_for(name: str | None, samples: Samples, label: str | None) -> Metric:
    """Returns the metric called `name`; without one accuracy for integer labels, mae for float, else agreement.

    Raises:
        DataError: No such metric.
    """
    if name is None and label is not None:
        return METRICS["mae" if np.asarray(samples[0][label]).dtype.kind == "f" else "accuracy"]
    return metric(name or "agreement")


def choose_output(io: IOSpec, output: str | None) -> str:
    """Returns the output that a metric reads: `output`, else the model's first output that is no state.

    Raises:
        DataError: No such output.
    """
    names = [o.name for o in io.result_outputs]
    if output is None:
        if not names:
            raise DataError("the model has no outputs but states.", hint="there is nothing to measure accuracy on")
        return names[0]
    if output not in names:
        raise DataError(
            f"no output '{output}' in this model (outputs: {', '.join(names)}).",
            hint=did_you_mean(output, names, "see `edgemm inspect` for the model's outputs"),
        )
    return output


def collect_outputs(
    run: Run, io: IOSpec, samples: Samples, *, batch: int = 32, reset: Callable[[], None] | None = None
) -> dict[str, np.ndarray]:
    """Returns every result output over all samples, first axis = sample.

    Keep the result of the float model: agreement and cosine are computed against it. Samples run in order, so
    a session that keeps a state sees them as one stream; models with a state run one sample per call.

    Args:
        run: One call of the model.
        io: Its signature.
        samples: Checked samples.
        batch: Samples per call, where the batch is dynamic.
        reset: Called once before the first sample, to forget a state.
    """
    if reset is not None:
        reset()
    parts: dict[str, list[np.ndarray]] = {o.name: [] for o in io.result_outputs}
    for rows, feed in batches(io, samples, 1 if io.states else batch):
        outputs = run(feed)
        for name, values in parts.items():
            value = np.asarray(outputs[name])
            if io.batch is None or value.ndim == 0 or value.shape[0] != len(rows):
                value = value[None]
            values.append(value)
    return {name: concatenate_rows(values) for name, values in parts.items()}


def concatenate_rows(values: Sequence[np.ndarray]) -> np.ndarray:
    """Returns parts of an output as one, first axis = sample; rows of different shapes as objects."""
    if len({v.shape[1:] for v in values}) > 1:
        return _ragged([row for value in values for row in value])
    return np.concatenate(values)


def _ragged(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns an array of objects with one row each."""
    result = np.empty(len(rows), dtype=object)
    for at, row in enumerate(rows):
        result[at] = row
    return result


def numeric_parts(value: np.ndarray) -> Sequence[np.ndarray]:
    """Returns `value` as arrays of numbers: itself, or its rows where they differ in shape."""
    return list(value) if value.dtype == object else [value]


def collect_labels(samples: Samples, label: str) -> np.ndarray:
    """Returns array `label` of every sample, first axis = sample; rows of different shapes as objects."""
    rows = [np.asarray(samples[i][label]) for i in range(len(samples))]
    return np.stack(rows) if len({r.shape for r in rows}) == 1 else _ragged(rows)


def evaluate(
    run: Run,
    io: IOSpec,
    samples: Samples,
    metric: Metric,
    *,
    label: str | None = None,
    output: str | None = None,
    batch: int = 32,
    reference: Outputs | None = None,
    reset: Callable[[], None] | None = None,
) -> float:
    """Returns `metric` of `run` over `samples`.

    Args:
        run: One call of the model.
        io: Its signature.
        samples: Checked samples.
        metric: From `metric(name)`.
        label: Array of the labels, for a metric that needs them.
        output: Which output to read; default the first.
        batch: Samples per call.
        reference: The float model's outputs from `collect_outputs`, for agreement and cosine.
        reset: Called once before the first sample.

    Raises:
        DataError: Labels or reference are missing, or do not fit the output.
    """
    outputs = collect_outputs(run, io, samples, batch=batch, reset=reset)
    labels = collect_labels(samples, label) if label is not None else None
    return score(metric, outputs, choose_output(io, output), labels=labels, reference=reference)


def score(
    metric: Metric, outputs: Outputs, output: str, *, labels: np.ndarray | None, reference: Outputs | None = None
) -> float:
    """Returns `metric` of outputs that are already there.

    Raises:
        DataError: Labels or reference are missing, or do not fit the output.
    """
    target = labels
    if metric.name in _AGAINST_FLOAT:
        if reference is None:
            raise DataError(
                f"metric '{metric.name}' compares with the float model, whose outputs were not given.",
                hint="pass reference=collect_outputs(float_run, ...)",
            )
        target = np.asarray(reference[output])
    elif metric.needs_labels and labels is None:
        raise DataError(
            f"metric '{metric.name}' needs labels.",
            hint="name the label array with --label, or use --metric agreement",
        )
    return metric.function(outputs, output, target)


def _scores(
    outputs: Outputs, output: str, target: np.ndarray | None, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    value = np.asarray(outputs[output])
    assert target is not None, "score() checks this"
    if len(value) != len(target):
        raise DataError(
            f"metric '{metric}': output '{output}' has {len(value)} rows, the labels have {len(target)}.",
            hint="every sample needs one label",
        )
    return _level(value, np.asarray(target), output, metric)


def _level(value: np.ndarray, target: np.ndarray, output: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of different lengths joined along their first axis, with their targets: one row per step."""
    if value.dtype != object and target.dtype != object:
        return value, target
    for row, (a, b) in enumerate(zip(value, target, strict=True)):
        if a.ndim == 0 or b.ndim == 0 or len(a) != len(b):
            raise DataError(
                f"metric '{metric}': output '{output}' of sample {row} has shape {a.shape}, its target {b.shape}.",
                hint="an output of variable length needs a label per step, or --metric FILE.py:FUNC",
            )
    return np.concatenate(list(value)), np.concatenate(list(target))


def predicted_classes(value: np.ndarray) -> np.ndarray:
    """Returns class indices: the argmax over the last axis, or for a single score 1 where it means "yes".

    A single score (last axis of size 1, or one value per sample) is a probability when every value lies in
    [0, 1], and means "yes" above 0.5; otherwise it is a logit, and means "yes" above 0. NaN is class -1, which
    is never right.
    """
    if value.ndim > 1 and value.shape[-1] > 1:
        classes = np.argmax(value, axis=-1).astype(np.int64)
        return np.where(np.isnan(value).any(axis=-1), -1, classes)
    single = value[..., 0] if value.ndim > 1 else value
    probability = bool(single.size and np.nanmin(single) >= 0 and np.nanmax(single) <= 1)
    return np.where(np.isnan(single), -1, (single > (0.5 if probability else 0.0)).astype(np.int64))


def _class_labels(
    value: np.ndarray, target: np.ndarray, output: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns predicted and true class indices; one-hot labels of the output's shape are taken as classes."""
    predicted = predicted_classes(value)
    if target.dtype.kind not in "iubf":
        raise DataError(
            f"metric '{metric}': labels are {target.dtype}, expected class indices.",
            hint="map class names to 0, 1, 2, ... in the order of the model's output",
        )
    if target.shape == value.shape and value.ndim > 1 and value.shape[-1] > 1:
        target = np.argmax(target, axis=-1)
    elif target.ndim == predicted.ndim + 1 and target.shape[-1] == 1:
        target = target[..., 0]
    if target.shape != predicted.shape:
        raise DataError(
            f"metric '{metric}': labels have shape {target.shape}, output '{output}' {value.shape} gives "
            f"classes of shape {predicted.shape}.",
            hint="give one class index per prediction, or choose another output with --output-name",
        )
    classes = value.shape[-1] if value.ndim > 1 and value.shape[-1] > 1 else 2
    if target.size and (target.min() < 0 or target.max() >= classes):
        raise DataError(
            f"metric '{metric}': labels go from {target.min()} to {target.max()}, output '{output}' has "
            f"{classes} classes (0 to {classes - 1}).",
            hint="class indices start at 0; or choose another output with --output-name",
        )
    return predicted, target.astype(np.int64)


def _accuracy(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    value, labels = _scores(outputs, output, target, "accuracy")
    predicted, true = _class_labels(value, labels, output, "accuracy")
    return float(np.mean(predicted == true))


def _f1_macro(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    learn = require("sklearn.metrics", extra="convert", why="compute F1")
    value, labels = _scores(outputs, output, target, "f1_macro")
    predicted, true = _class_labels(value, labels, output, "f1_macro")
    return float(learn.f1_score(true.ravel(), predicted.ravel(), average="macro", zero_division=0.0))


def _auroc(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    """Binary: the score, or the difference of two logits. Several classes: one against the rest, macro mean."""
    learn = require("sklearn.metrics", extra="convert", why="compute AUROC")
    value, labels = _scores(outputs, output, target, "auroc")
    _, true = _class_labels(value, labels, output, "auroc")
    flat = value.reshape(true.size, -1).astype(np.float64)
    true = true.ravel()
    present = np.unique(true)
    if len(present) < 2:
        raise DataError(
            f"metric 'auroc': all {true.size} labels are class {present[0] if len(present) else '?'}.",
            hint="AUROC needs samples of at least two classes",
        )
    if not np.isfinite(flat).all():
        raise DataError(f"metric 'auroc': output '{output}' has NaN or Inf.", hint="the model overflows")
    if flat.shape[1] == 1:
        return float(learn.roc_auc_score(true, flat[:, 0]))
    if flat.shape[1] == 2:
        return float(learn.roc_auc_score(true, flat[:, 1] - flat[:, 0]))
    # Classes without a sample have no curve; the mean is over those that have one.
    return float(np.mean([learn.roc_auc_score(true == c, flat[:, c]) for c in present]))


def _difference(outputs: Outputs, output: str, target: np.ndarray | None, metric: str) -> np.ndarray:
    value, labels = _scores(outputs, output, target, metric)
    if value.size == labels.size and value.shape != labels.shape:
        squeezed = [tuple(s for s in a.shape if s != 1) for a in (value, labels)]
        if squeezed[0] == squeezed[1]:
            labels = labels.reshape(value.shape)
    if value.shape != labels.shape:
        raise DataError(
            f"metric '{metric}': labels have shape {labels.shape}, output '{output}' has {value.shape}.",
            hint="labels of a regression need the shape of the output; choose it with --output-name",
        )
    return value.astype(np.float64) - labels.astype(np.float64)


def _mae(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    return float(np.mean(np.abs(_difference(outputs, output, target, "mae"))))


def _mse(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    return float(np.mean(np.square(_difference(outputs, output, target, "mse"))))


def is_classes(value: np.ndarray) -> bool:
    """True for integers and for scores [samples, classes]: outputs that agree or do not."""
    part = numeric_parts(value)[0] if value.dtype == object and len(value) else value
    return part.dtype.kind in "iub" or (part.ndim == 2 and part.shape[1] > 1)


def _agreement(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    """[samples, classes]: share of equal argmax. Integers: share of equal values. Others (regression): cosine."""
    value, reference = _scores(outputs, output, target, "agreement")
    if value.dtype.kind in "iub":
        return float(np.mean(value == reference))
    if value.ndim == 2 and value.shape[1] > 1:
        return float(np.mean(predicted_classes(value) == predicted_classes(reference)))
    return _cosine(outputs, output, target)


def _cosine(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
    """Mean over samples; one value per sample has no direction, so then all samples are one vector."""
    value, reference = _scores(outputs, output, target, "cosine")
    if value.size == len(value):
        value, reference = value.reshape(1, -1), reference.reshape(1, -1)
    a = value.reshape(len(value), -1).astype(np.float64)
    b = reference.reshape(len(reference), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(norms > 0, (a * b).sum(axis=1) / norms, 0.0)
    return float(np.mean(np.where(equal, 1.0, np.clip(np.nan_to_num(cosine), -1.0, 1.0))))


def _user_metric(name: str, function: Callable[..., Any]) -> Callable[[Outputs, str, np.ndarray | None], float]:
    def call(outputs: Outputs, output: str, target: np.ndarray | None) -> float:
        try:
            return float(function(dict(outputs), target))
        except Exception as error:
            raise DataError(
                f"{name} failed: {type(error).__name__}: {error}",
                hint="it is called as func(outputs: dict of arrays, labels: array or None) and returns a number",
            ) from error

    return call


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, True, True, _accuracy),
    "f1_macro": Metric("f1_macro", True, True, True, _f1_macro),
    "auroc": Metric("auroc", True, True, True, _auroc),
    "mae": Metric("mae", False, False, True, _mae),
    "mse": Metric("mse", False, False, True, _mse),
    "agreement": Metric("agreement", True, True, False, _agreement),
    "cosine": Metric("cosine", True, False, False, _cosine),
}
_AGAINST_FLOAT = frozenset({"agreement", "cosine"})
