"""Finds the batch axis of a model and proves that samples in one batch do not see each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgemm.compare import OutputParity
from edgemm.data import Sample
from edgemm.data.samples import NAMED
from edgemm.errors import DataError, ExportError, did_you_mean
from edgemm.export.archive import first_line
from edgemm.export.feeds import UNKNOWN_SIZES, Feeds, name_varying, synthetic_row, vary, whole_input
from edgemm.tensors import BATCH, Feed, StateSpec, TensorSpec

Reopen = Callable[[Feed, tuple[int, int, int], Callable[[], bool]], bool]
"""Opens a batch that is written into a program: a feed, (input, axis, size written), a check -> done."""

Run = Callable[[Feed], dict[str, np.ndarray]]

_ROWS = 3
"""Rows without data, and the smallest batch that is compared."""

_MOST_ROWS = 16
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Two values agree when they differ by at most `absolute + relative · max|value|`."""

    absolute: float = 1e-4
    relative: float = 1e-3


@dataclass(frozen=True, slots=True)
class Batching:
    """How a model batches.

    Attributes:
        feeds: Rows with the batch axis of every input.
        dynamic: True when a batch of several gives what single runs give.
        reason: Why not, when it is not.
        has_axis: False when no input has a batch axis.
        size: The batch size to use when it is fixed.
        reopened: True when the batch was written into the program and had to be opened first.
    """

    feeds: Feeds
    dynamic: bool
    reason: str = ""
    has_axis: bool = True
    size: int = 1
    reopened: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be tried out.

    Attributes:
        run: Runs it on one feed.
        inputs: Its inputs, with the sizes and symbols that the file, the data or the user gives.
        examples: Whole inputs that came with the file.
        samples: Rows of the user's data.
        states: Inputs that come back as outputs.
    """

    run: Run
    inputs: tuple[TensorSpec, ...]
    examples: Feed
    samples: Sequence[Sample]
    states: tuple[StateSpec, ...]

    @property
    def state_inputs(self) -> set[str]:
        """Names of the state inputs."""
        return {s.input for s in self.states}


def batch_axis(spec: TensorSpec, row: np.ndarray | None) -> int | None:
    """Returns the axis of an input that counts samples, or None.

    A symbol called `batch` says so itself. Otherwise it is axis 0, unless another symbol is declared there or a
    data row of full rank shows that axis 0 is data.
    """
    if BATCH in spec.shape:
        return spec.shape.index(BATCH)
    if not spec.shape or isinstance(spec.shape[0], str):
        return None
    return None if row is not None and row.ndim == len(spec.shape) and row.shape[0] != 1 else 0


def find_batching(subject: Subject, tolerance: Tolerance, reopen: Reopen | None = None) -> Batching:
    """Returns the batch axes of a model and whether it batches correctly, told by running it.

    The batch axis of a state ([layers, batch, hidden] as often as [batch, ...]) is found by trying.

    Raises:
        ExportError: The model fails on a single sample, or two runs of one sample differ.
        DataError: The data does not fit the inputs.
    """
    run, inputs, samples, kept = subject.run, subject.inputs, subject.samples, subject.state_inputs
    axes: dict[str, int | None] = {}
    for spec in inputs:
        given = np.asarray(samples[0][spec.name]) if samples and spec.name in samples[0] else None
        axes[spec.name] = batch_axis(spec, given)
    open_states = [s for s in inputs if s.name in kept and BATCH not in s.shape and s.shape]
    batches = {s.shape[a] for s in inputs if s.name not in kept and (a := axes[s.name]) is not None}
    written = next((b for b in batches if isinstance(b, int)), None)
    tried: list[Batching] = []
    for axis in range(max([1, *(len(s.shape) for s in open_states)])):
        axes |= {s.name: _state_axis(s, axis, written) for s in open_states}
        feeds = _rows_that_run(subject, axes)
        if not any(a is not None for name, a in axes.items() if name not in kept):
            check_repeatable(run, feeds.call())
            return Batching(feeds, False, "no input has a batch axis", has_axis=False)
        size = usable_batch(run, feeds, inputs) if not tried else tried[0].size
        if not tried:
            check_repeatable(run, feeds.call(size))
        reason = compare_batches(subject, feeds, tolerance)
        if not reason:
            return Batching(feeds, True)
        if reopen is not None:
            opened, why = _reopened(subject, feeds, tolerance, reopen)
            if opened:
                return Batching(feeds, True, reopened=True)
            reason = why or reason
        tried.append(Batching(feeds, False, reason, size=size))
    return tried[0]


def fixed_batch_note(batching: Batching) -> tuple[str, ...]:
    """Returns what a user must know of a model whose samples cannot share a call; nothing otherwise."""
    if batching.dynamic or not batching.has_axis:
        return ()
    return (
        f"the batch is fixed at {batching.size}: {batching.reason}; sessions run several samples "
        f"{batching.size} at a time, each as if it were alone",
    )


def _rows_that_run(subject: Subject, axes: Mapping[str, int | None]) -> Feeds:
    """Returns rows; random ones at the first open size that the model accepts."""
    first = make_rows(subject, axes)
    has_open = any(isinstance(d, str) and d != BATCH for s in subject.inputs for d in s.shape)
    if subject.samples or subject.examples or not has_open:
        return first
    for size in UNKNOWN_SIZES:
        feeds = make_rows(subject, axes, size)
        try:
            subject.run(feeds.call())
        except Exception:  # whatever a model raises for a size that it does not take
            continue
        return feeds
    return first


def _state_axis(spec: TensorSpec, axis: int, batch: int | None) -> int | None:
    """Returns `axis` when it may be a state's batch: open, or of the size that the other inputs' batch has."""
    axis = min(axis, len(spec.shape) - 1)
    return axis if isinstance(spec.shape[axis], str) or spec.shape[axis] == (batch or 1) else None


def usable_batch(run: Run, feeds: Feeds, inputs: Sequence[TensorSpec]) -> int:
    """Returns 1 when the model runs on one sample, else the batch size that is written into it.

    Raises:
        ExportError: It runs at neither.
    """
    try:
        run(feeds.call())
    except Exception:
        written = _written_batch(feeds, inputs)
        if written is None or written[2] == 1:
            run_or_explain(run, feeds.call())
            raise
        run_or_explain(run, feeds.call(written[2]))
        return written[2]
    return 1


def _written_batch(feeds: Feeds, inputs: Sequence[TensorSpec]) -> tuple[int, int, int] | None:
    """Returns position, batch axis and size of the first input whose batch is a number in the file."""
    for index, spec in enumerate(inputs):
        axis = feeds.axes[spec.name]
        if axis is not None and isinstance(size := spec.shape[axis], int):
            return index, axis, size
    return None


def _reopened(subject: Subject, feeds: Feeds, tolerance: Tolerance, reopen: Reopen) -> tuple[bool, str]:
    """Returns whether the batch could be opened, and else what was wrong with the most likely way."""
    written = _written_batch(feeds, subject.inputs)
    if written is None:
        return False, ""
    reasons: list[str] = []

    def accept() -> bool:
        reasons.append(compare_batches(subject, feeds, tolerance))
        return not reasons[-1]

    opened = reopen(feeds.call(3 * written[2]), written, accept)
    return opened, "" if opened else next(iter(reasons), "")


def check_repeatable(run: Run, feed: Feed) -> None:
    """Checks that two runs of one feed give the same.

    Raises:
        ExportError: The model fails, or is random.
    """
    first = run_or_explain(run, feed)
    others = [run(feed) for _ in range(_REPEATS)]
    for name, value in first.items():
        if not all(_equal(value, other[name], Tolerance()) for other in others):
            raise ExportError(
                f"the model is random: output '{name}' differs between runs of the same sample.",
                hint="call model.eval() before saving it (dropout stays on otherwise), and draw no random numbers",
            )


def run_or_explain(run: Run, feed: Feed) -> dict[str, np.ndarray]:
    """Returns `run(feed)`.

    Raises:
        ExportError: The model fails; the message shows what it was given.
    """
    try:
        return run(feed)
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{n}{list(a.shape)} {a.dtype.name}" for n, a in feed.items())
        raise ExportError(
            f"the model fails on one sample ({shapes}): {type(error).__name__}: {first_line(error)}.",
            hint="check that the inputs' shapes, dtypes and order are the model's (--input, --calib)",
        ) from error


def compare_batches(subject: Subject, feeds: Feeds, tolerance: Tolerance) -> str:
    """Returns why a batch of several is not the same as single runs; an empty text when it is."""
    run = subject.run
    sizes = feeds.sizes_of(0)
    rows = min(len(feeds.rows), _MOST_ROWS)
    try:
        singles = [run(feeds.call(1, i, sizes)) for i in range(rows)]
    except Exception as error:
        return f"the model fails at batch 1: {first_line(error)}"
    try:
        together = run(feeds.call(rows, 0, sizes))
    except Exception as error:
        return f"the model fails at batch {rows}: {first_line(error)}"
    state_axis = {s.output: feeds.axes[s.input] for s in subject.states}
    for name, value in together.items():
        axis = state_axis.get(name) if name in state_axis else 0
        alone = [single[name] for single in singles]
        if axis is None or value.ndim <= axis or alone[0].ndim <= axis:
            return f"output '{name}' has shape {value.shape} for {rows} samples: no axis counts them"
        joined = np.concatenate(alone, axis=axis) if _stackable(alone, axis) else alone[0]
        if joined.shape != value.shape:
            return f"output '{name}' has shape {value.shape} for {rows} samples and {alone[0].shape} for one"
        if not _equal(joined, value, tolerance):
            parity = OutputParity()
            parity.add(joined, value, 0)
            return (
                f"a sample's result depends on the others in its batch: output '{name}' differs by "
                f"{parity.max_abs:.2g} between a batch of {rows} and single runs"
            )
    return ""


def _stackable(arrays: Sequence[np.ndarray], axis: int) -> bool:
    return len({a.shape[:axis] + a.shape[axis + 1 :] for a in arrays}) == 1


def _equal(a: np.ndarray, b: np.ndarray, tolerance: Tolerance) -> bool:
    parity = OutputParity()
    parity.add(a, b, 0)
    return parity.max_abs <= tolerance.absolute + tolerance.relative * parity.scale


def make_rows(subject: Subject, axes: Mapping[str, int | None], unknown: int = UNKNOWN_SIZES[0]) -> Feeds:
    """Returns rows from the data, else from the file's example (varied), else random ones.

    Raises:
        DataError: The data lacks an input that is no state, or does not fit one.
    """
    inputs, examples, samples = subject.inputs, subject.examples, subject.samples
    rows: list[dict[str, np.ndarray]] = [{} for _ in range(max(len(samples), _ROWS))]
    for spec in inputs:
        axis = axes[spec.name]
        for index, row in enumerate(rows):
            sample = samples[index % len(samples)] if samples else {}
            if spec.name in sample:
                row[spec.name] = whole_input(spec, sample[spec.name], axis)
            elif samples and spec.name not in subject.state_inputs:
                raise DataError(
                    f"the data has no array '{spec.name}' (arrays: {', '.join(sorted(sample))}).",
                    hint=did_you_mean(
                        spec.name,
                        sorted(set(sample) - {i.name for i in inputs}),
                        NAMED,
                    ),
                )
            elif spec.name in examples:
                row[spec.name] = vary(_one_of(examples[spec.name], axis, index), index)
            else:
                row[spec.name] = synthetic_row(spec, axis, index, unknown)
    resolved = tuple(replace(s, shape=_with_batch(s, axes[s.name])) for s in inputs)
    return Feeds(name_varying(resolved, rows), dict(axes), tuple(rows))


def _one_of(example: np.ndarray, axis: int | None, index: int) -> np.ndarray:
    if axis is None:
        return example
    return np.take(example, [index % example.shape[axis]], axis=axis)


def _with_batch(spec: TensorSpec, axis: int | None) -> tuple[int | str, ...]:
    return tuple(BATCH if a == axis else d for a, d in enumerate(spec.shape))
