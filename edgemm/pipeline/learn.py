"""A trained value that stands for what an encoder gives, where its modality has no sample.

Encoders and fusion head stay as they ship; only the value is sought, so that the loss on calibration samples is
least. Heads are ONNX graphs, or integer engines, without gradients. So the search is a derivative-free one
(Powell, 1964) over few numbers: the value is the mean, moved towards what the encoder gives for a blank sample and
along the directions in which its real values differ most (principal components), never beyond what was seen. That
also keeps it in the range for which integer heads are calibrated.

It is kept only where it is better than the mean on samples that it was not trained on, by more than two
standard errors of that comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemm._optional import require
from edgemm.data import Sample, Samples, thinned
from edgemm.errors import DataError
from edgemm.pipeline.missing import Cut, Encoders, Rows
from edgemm.quant.chain import fed, feeds
from edgemm.runtime.cache import StageCache
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.stand_ins import StandIns
from edgemm.tensors import Feed

TRAINING = 256
HELD_OUT = 256
"""Most samples, spread evenly."""

BATCH = 16
"""Samples of one run of the head."""

DIRECTIONS = 16
"""Most numbers that are sought."""

TRIES = 700
"""Values whose loss is computed, about."""

FARTHEST = 3.0
"""Standard deviations by which the value may move along each direction."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What training came to.

    Attributes:
        rows: Tensor -> row, direct inputs of the mean included.
        loss: Mean loss on held-out samples.
        mean_loss: The same with the mean in its place.
        error: Standard error of the difference.
        samples: That were held out.
        target: What the loss compares with: `"labels"`, or `"the full model"`.
    """

    rows: Rows
    loss: float
    mean_loss: float
    error: float
    samples: int
    target: str

    @property
    def better(self) -> bool:
        """Whether it is better than the mean by more than chance."""
        return self.mean_loss - self.loss > 2 * self.error


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the encoder for whose outputs something is to stand.

    Attributes:
        cut: Where the modality enters.
        encoders: Of the variant.
        mean: Tensor -> mean row.
        blank: Input -> row of a blank sample; empty where none is known.
    """

    cut: Cut
    encoders: Encoders
    mean: Rows
    blank: Rows


def learn(
    session: FusionSession,
    known: Known,
    parts: tuple[Samples, Samples],
    scored: tuple[str, str | None],
    tell: Callable[[int, int], None],
) -> Learned:
    """Returns a trained value for what one encoder of a session gives.

    Args:
        session: The variant that ships, without states.
        known: Of its encoder.
        parts: Samples to train on, and others to compare on.
        scored: The output that counts, and the array of labels, None without.
        tell: Told how many values were tried, of how many.

    Raises:
        DataError: The output differs in size from sample to sample.
        BackendError: An engine fails.
        MissingExtraError: scipy is not installed.
    """
    optimize = require("scipy.optimize", extra="convert", why="train what stands for a modality")
    training, held_out = (thinned(p, most) for p, most in zip(parts, (TRAINING, HELD_OUT), strict=True))
    space = _Space.of(known, training)
    trial = _Trial(session, known.cut, training, scored)
    tried = 0

    def loss(z: np.ndarray) -> float:
        nonlocal tried
        tried += 1
        tell(min(tried, TRIES), TRIES)
        return float(trial.losses(space.rows(z)).mean())

    start = min(space.starts(), key=loss)
    best = start
    if space.size:
        limits = [(-FARTHEST, FARTHEST)] * space.size
        options = {"maxfev": TRIES, "xtol": 1e-2, "ftol": 1e-4}
        found = optimize.minimize(loss, start, method="Powell", bounds=limits, options=options)
        best = np.atleast_1d(found.x) if float(found.fun) < loss(start) else start
    check = _Trial(session, known.cut, held_out, scored)
    rows = space.rows(best)
    before, after = check.losses(known.mean), check.losses(rows)
    error = float((before - after).std(ddof=1) / np.sqrt(len(before))) if len(before) > 1 else np.inf
    return Learned(rows, float(after.mean()), float(before.mean()), error, len(before), check.target)


@dataclass(frozen=True, slots=True)
class _Space:
    """Few numbers -> a row of every tensor that an encoder gives."""

    mean: Rows
    names: tuple[str, ...]
    center: np.ndarray
    directions: np.ndarray
    low: np.ndarray
    high: np.ndarray
    towards_blank: bool

    @classmethod
    def of(cls, known: Known, samples: Samples) -> _Space:
        """Returns the space around the mean that real values span.

        One unit is the standard deviation along a direction; the first one, if anything is blank, leads there.
        """
        names = tuple(t.name for t in known.cut.given)
        seen = np.concatenate([_flat(values, names) for values in known.encoders.rows(known.cut, samples)])
        center = _flat({n: known.mean[n][None] for n in names}, names)[0]
        _, spread, axes = np.linalg.svd(seen - center, full_matrices=False)
        spread = spread / np.sqrt(max(len(seen) - 1, 1))
        used = min(DIRECTIONS, int((spread > 1e-6 * max(spread[0], 1e-30)).sum()), len(seen) - 1)
        directions = axes[:used] * spread[:used, None]
        if known.blank:
            (values,) = known.encoders.rows(known.cut, [_blanked(samples[0], known.blank)])
            blank = _flat(values, names)
            directions, seen = np.concatenate([blank - center, directions]), np.concatenate([seen, blank])
        return cls(known.mean, names, center, directions, seen.min(0), seen.max(0), bool(known.blank))

    def starts(self) -> list[np.ndarray]:
        """Returns the mean, and what is given for a blank sample."""
        mean = np.zeros(self.size)
        return [mean, np.eye(self.size)[0]] if self.towards_blank else [mean]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.directions)

    def rows(self, z: np.ndarray) -> Rows:
        """Returns the rows for `z`, within what was seen; direct inputs are those of the mean."""
        flat = np.clip(self.center + np.atleast_1d(z) @ self.directions, self.low, self.high)
        rows, start = dict(self.mean), 0
        for name in self.names:
            row = self.mean[name]
            rows[name] = flat[start : start + row.size].reshape(row.shape).astype(row.dtype)
            start += row.size
        return rows


def _blanked(sample: Sample, blank: Rows) -> dict[str, np.ndarray]:
    """Returns a sample with one modality blank."""
    found = {name: np.asarray(row) for name, row in sample.items()}
    for name, row in blank.items():
        found[name] = np.full_like(found[name], row) if row.ndim == 0 else row
    return found


def _flat(values: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Returns `[samples, numbers]` of several tensors."""
    return np.concatenate([np.asarray(values[n], np.float32).reshape(len(values[n]), -1) for n in names], axis=1)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A few samples: their feed without the modality, what the other encoders gave, and what is right."""

    feed: Feed
    cache: StageCache
    target: np.ndarray
    size: int


class _Trial:
    """The loss of some samples with a value in the place of an encoder: only the fusion head runs."""

    def __init__(self, session: FusionSession, cut: Cut, samples: Samples, scored: tuple[str, str | None]) -> None:
        self._session, self._cut = session, cut
        self._output, label = scored
        io = session.io
        full: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        begun: list[tuple[Feed, StageCache, int]] = []
        for rows, feed in feeds(io, samples, BATCH):
            count = len(rows)
            cache = session.new_cache("marks")
            outputs = session.run_cached(cache, feed, set(io.modality_names()))
            full.append(self._rows(outputs, count))
            if label is not None:
                labels += [np.asarray(row[label]) for row in rows]
            begun.append((feed, cache, count))
        if len({a.shape[1:] for a in full}) > 1 or len({a.shape for a in labels}) > 1:
            raise DataError(
                f"output '{self._output}', or its label, differs in size from sample to sample.",
                hint="nothing is trained for such an output yet; use the mean",
            )
        self._loss, targets, self.target = choose_loss(np.concatenate(full), np.stack(labels) if labels else None)
        ends = np.cumsum([count for *_, count in begun])
        self._batches = [
            _Batch(feed, cache, targets[end - count : end], count)
            for (feed, cache, count), end in zip(begun, ends, strict=True)
        ]

    def losses(self, rows: Rows) -> np.ndarray:
        """Returns the loss of every sample."""
        session, cut = self._session, self._cut
        stand_ins = StandIns(session.manifest, session.variant, {(cut.modality, "learned"): rows})
        placed = stand_ins.find(cut.modality, "learned")
        assert placed is not None, "the variant has an engine for the encoder"
        found = []
        for batch in self._batches:
            count = fed(batch.feed, session.io)
            sizes = session.io.sizes(batch.feed)
            feed = {**batch.feed, **placed.feed(session.io, cut.modality, sizes, count)}
            behind = placed.behind(session.io, count)
            outputs = session.run_cached(batch.cache, feed, {cut.modality}, behind)
            found.append(self._loss(self._rows(outputs, batch.size), batch.target))
        return np.concatenate(found)

    def _rows(self, outputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """Returns the output that counts, [samples, ...]."""
        value = np.asarray(outputs[self._output])
        return value[:count] if self._session.io.batch is not None and value.ndim else value[None]


Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Outputs and targets of some samples -> the loss of each."""


def choose_loss(full: np.ndarray, labels: np.ndarray | None) -> tuple[Loss, np.ndarray, str]:
    """Returns the loss, the target of every sample, and what that is.

    Cross-entropy with labels that are classes, squared error with float ones. Without labels, or with others, what
    the full model gives is the target: cross-entropy with its probabilities, or squared error over its variance.

    Args:
        full: What the model gives for complete samples, [samples, ...].
        labels: Of the same samples, or None.
    """
    classes = full.ndim > 1 and full.shape[-1] > 1
    shares = classes and bool((full >= 0).all() and np.allclose(full.sum(axis=-1), 1, atol=1e-3))
    single = not classes and bool((full >= 0).all() and (full <= 1).all())
    if labels is not None and labels.dtype.kind in "iub":
        if classes and labels.shape == full.shape[:-1]:
            return _classes(shares), labels.astype(np.int64), "labels"
        if not classes and labels.size == full.size:
            return _yes_or_no(single), labels.reshape(len(labels), -1).astype(np.float64), "labels"
    if labels is not None and labels.dtype.kind == "f" and labels.size == full.size:
        return _squares(1.0), labels.reshape(len(labels), -1).astype(np.float64), "labels"
    if full.ndim == 2 and classes:
        return _soft_classes(shares), np.exp(_log_shares(full, shares)), "the full model"
    return _squares(float(full.var()) or 1.0), full.reshape(len(full), -1).astype(np.float64), "the full model"


def _log_shares(value: np.ndarray, shares: bool) -> np.ndarray:
    exact = np.asarray(value, np.float64)
    logits: np.ndarray = np.log(np.clip(exact, 1e-12, None)) if shares else exact
    logits = logits - logits.max(axis=-1, keepdims=True)
    normal: np.ndarray = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return normal


def _classes(shares: bool) -> Loss:
    def loss(value: np.ndarray, target: np.ndarray) -> np.ndarray:
        right = np.take_along_axis(_log_shares(value, shares), target[..., None], axis=-1)
        return np.asarray(-right.reshape(len(value), -1).mean(axis=1))

    return loss


def _soft_classes(shares: bool) -> Loss:
    return lambda value, target: -(target * _log_shares(value, shares)).sum(axis=-1)


def _yes_or_no(probability: bool) -> Loss:
    def loss(value: np.ndarray, target: np.ndarray) -> np.ndarray:
        flat = np.asarray(value, np.float64).reshape(len(value), -1)
        if probability:
            flat = np.clip(flat, 1e-7, 1 - 1e-7)
            flat = np.log(flat / (1 - flat))
        return np.asarray((np.logaddexp(0, flat) - target * flat).mean(axis=1))

    return loss


def _squares(scale: float) -> Loss:
    def loss(value: np.ndarray, target: np.ndarray) -> np.ndarray:
        flat = np.asarray(value, np.float64).reshape(len(value), -1)
        return np.asarray(np.square(flat - target).mean(axis=1) / scale)

    return loss
