"""Samples held against the model's signature in one streaming pass, before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgemm.data.samples import Sample, Samples, has_batch_axis, locate, names_of, notes_of, origin_of
from edgemm.errors import DataError, did_you_mean
from edgemm.tensors import IOSpec, TensorSpec, convert_hint


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """What an array's rows look like over all samples.

    Attributes:
        dtype: numpy dtype name.
        smallest: Smallest size of every axis of a row.
        largest: Largest size of every axis of a row; an axis that varies must stay dynamic in the export.
    """

    dtype: str
    smallest: tuple[int, ...]
    largest: tuple[int, ...]

    @property
    def varying(self) -> tuple[int, ...]:
        """Axes of a row whose size changes from sample to sample."""
        return tuple(i for i, (a, b) in enumerate(zip(self.smallest, self.largest, strict=True)) if a != b)


@dataclass(frozen=True, slots=True)
class DataReport:
    """Samples that passed.

    Attributes:
        samples: How many there are.
        names: Every array.
        labels: Arrays that are no inputs.
        warnings: Suspicious but usable things, one sentence each.
        arrays: Array name -> dtype and row shapes.
    """

    samples: int
    names: tuple[str, ...]
    labels: tuple[str, ...]
    warnings: tuple[str, ...]
    arrays: Mapping[str, ArrayInfo] = field(default_factory=dict)


@dataclass(slots=True)
class _Survey:
    """Running facts about one array: shapes, and which columns never changed."""

    dtype: str
    smallest: tuple[int, ...]
    largest: tuple[int, ...]
    first: np.ndarray | None
    constant: np.ndarray | None
    single_value: bool = True

    @classmethod
    def start(cls, row: np.ndarray) -> _Survey:
        columns = row.reshape(row.shape[0], -1) if row.ndim and row.size else None
        first = columns[:, 0].copy() if columns is not None else None
        constant = np.ones(row.shape[0], bool) if columns is not None else None
        return cls(row.dtype.name, row.shape, row.shape, first if columns is not None else row.copy(), constant)

    def add(self, row: np.ndarray) -> None:
        if row.ndim == len(self.smallest):
            self.smallest = tuple(map(min, self.smallest, row.shape))
            self.largest = tuple(map(max, self.largest, row.shape))
        if self.constant is None or self.first is None:
            self.single_value = self.single_value and self.first is not None and bool(np.all(row == self.first))
            return
        if row.shape[:1] != self.constant.shape:  # a varying first axis has no columns to follow
            self.constant, self.first, self.single_value = np.zeros(0, bool), None, False
            return
        if self.constant.any() and row.size:
            self.constant &= (row.reshape(row.shape[0], -1) == self.first[:, None]).all(axis=1)

    def info(self) -> ArrayInfo:
        return ArrayInfo(self.dtype, self.smallest, self.largest)


def describe(samples: Samples) -> dict[str, ArrayInfo]:
    """Returns dtype and row shapes of every array in one streaming pass: enough to infer a model's inputs.

    Raises:
        DataError: A row lacks an array, or its number of axes or dtype changes.
    """
    surveys: dict[str, _Survey] = {}
    for index in range(len(samples)):
        rows = _rows(samples, index, tuple(surveys) or names_of(samples))
        for name, row in rows.items():
            known = surveys.get(name)
            if known is None:
                known = surveys[name] = _Survey.start(row)
            _check_same_kind(samples, index, name, row, known)
            known.add(row)
    return {name: s.info() for name, s in surveys.items()}


def check_samples(samples: Samples, io: IOSpec, *, label: str | None, role: str = "calibration") -> DataReport:
    """Returns what `samples` hold after checking every array of every sample against the model.

    One pass; memory does not grow with the number of samples.

    Args:
        samples: From `open_samples`, or anything with `__len__` and `__getitem__`.
        io: The model's signature. Rows lack the batch axis; an input without one is given whole.
        label: The array that a metric will use, or None.
        role: What the samples are for, for messages: `"calibration"` or `"evaluation"`.

    Raises:
        DataError: No samples, a missing array or label, a wrong dtype or shape, objects, NaN or Inf; the
            message names file, array and row.
    """
    origin = origin_of(samples)
    if len(samples) == 0:
        raise DataError(f"{origin}: no samples.", hint=f"{role} needs at least one row in every array")
    names = names_of(samples)
    inputs = {i.name: i for i in io.inputs}
    _check_names(origin, names, io, label)
    surveys: dict[str, _Survey] = {}
    odd_labels: dict[str, int] = {}
    for index in range(len(samples)):
        rows = _rows(samples, index, names)
        sizes: dict[str, tuple[int, str]] = {}
        for name, row in rows.items():
            if name in io.state_inputs:
                continue
            if name in inputs:
                _check_row(samples, index, io, inputs[name], row, sizes)
            if name in surveys:
                _check_same_kind(samples, index, name, row, surveys[name])
            if name in inputs or name == label:
                _check_finite(samples, index, name, row)
            elif _not_finite(row):
                odd_labels.setdefault(name, index)
            surveys.setdefault(name, _Survey.start(row)).add(row)
    labels = tuple(n for n in names if n not in inputs)
    warnings = _warnings(origin, io, surveys, label, len(samples))
    ignored = "is a state of the model; the session keeps it, this one is ignored."
    warnings += [f"{origin}: array '{n}' {ignored}" for n in names if n in io.state_inputs]
    warnings += [
        f"{locate(samples, i)}: array '{n}' has NaN or Inf; it is not used." for n, i in odd_labels.items()
    ]
    warnings += notes_of(samples)
    return DataReport(len(samples), names, labels, tuple(warnings), {n: s.info() for n, s in surveys.items()})


def _rows(samples: Samples, index: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    sample: Sample = samples[index]
    missing = [n for n in names if n not in sample]
    if missing:
        raise DataError(
            f"{locate(samples, index)}: no array '{missing[0]}' (arrays: {', '.join(sample) or 'none'}).",
            hint="every sample needs the same arrays as the first",
        )
    return {n: np.asarray(sample[n]) for n in names}


def _check_names(origin: str, names: tuple[str, ...], io: IOSpec, label: str | None) -> None:
    wanted = [i.name for i in io.feed_inputs]
    for name in wanted:
        if name not in names:
            spare = [n for n in names if n not in wanted]
            raise DataError(
                f"{origin}: no array '{name}' (arrays: {', '.join(names)}).",
                hint=did_you_mean(
                    name, spare, f"the model's inputs are {', '.join(wanted)}; each needs an array of its name"
                ),
            )
    if label is None:
        return
    labels = [n for n in names if n not in wanted]
    if label not in labels:
        what = "is an input of the model, not a label" if label in wanted else "is not there"
        listed = ", ".join(labels) or "none"
        raise DataError(
            f"{origin}: label '{label}' {what} (labels: {listed}).",
            hint=did_you_mean(label, labels, "add the labels as one more array, or leave --label out"),
        )


def _check_same_kind(samples: Samples, index: int, name: str, row: np.ndarray, known: _Survey) -> None:
    if row.dtype.name != known.dtype and not row.dtype.kind == "U":
        raise DataError(
            f"{locate(samples, index)}: array '{name}' is {row.dtype.name} here and {known.dtype} before.",
            hint="use one dtype for all samples",
        )
    if row.ndim != len(known.smallest):
        raise DataError(
            f"{locate(samples, index)}: array '{name}' has shape {row.shape} here, "
            f"and {len(known.smallest)} axes before.",
            hint="use the same number of axes for all samples",
        )


def _check_row(
    samples: Samples,
    index: int,
    io: IOSpec,
    spec: TensorSpec,
    row: np.ndarray,
    sizes: dict[str, tuple[int, str]],
) -> None:
    where, name = f"{locate(samples, index)}: array", spec.name
    if row.dtype.hasobject:
        raise DataError(
            f"{where} '{name}' holds Python objects, expected {spec.dtype}.",
            hint=f"rows of unequal length? pad them, then numpy.asarray({name}, dtype='{spec.dtype}')",
        )
    if row.dtype.name != spec.dtype:
        raw = row.dtype == np.uint8 and "float" in spec.dtype
        scale = " (scaled as in training, often / 255)" if raw else ""
        hint = f"before saving, {convert_hint(spec, row.dtype)}{scale}"
        if hasattr(samples, "coverage"):  # of a reader, which can be told
            hint = (
                f"say it in a description file: {name}: {{dtype: {spec.dtype}{', scale: 1/255' if raw else ''}}}"
            )
        raise DataError(
            f"{origin_of(samples)}: array '{name}' is {row.dtype.name}, the model takes {spec.dtype}.",
            hint=hint,
        )
    batched = has_batch_axis(io, spec)
    want = spec.shape[1:] if batched else spec.shape
    if row.ndim != len(want):
        rows = "rows" if batched else "whole inputs (it has no batch axis)"
        raise DataError(
            f"{where} '{name}' has a row of shape {row.shape}, the model takes {rows} of {_text(want)}.",
            hint=f"the array needs the shape [samples,{_text(want)[1:]}; got one of {row.ndim + 1} axes",
        )
    for axis, (got, size) in enumerate(zip(row.shape, want, strict=True)):
        if isinstance(size, int):
            if got != size:
                raise DataError(
                    f"{where} '{name}' has a row of shape {row.shape}, the model takes {_text(want)}.",
                    hint=f"axis {axis} of a row must be {size}: the model was made for this size",
                )
        elif sizes.setdefault(size, (got, name))[0] != got:
            known = sizes[size]
            raise DataError(
                f"{where} '{name}' has {got} along '{size}', '{known[1]}' has {known[0]}.",
                hint=f"arrays of one sample must agree on '{size}'",
            )


def _text(shape: tuple[int | str, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _not_finite(row: np.ndarray) -> int:
    return int(row.size - np.isfinite(row).sum()) if row.dtype.kind in "fc" else 0


def _check_finite(samples: Samples, index: int, name: str, row: np.ndarray) -> None:
    bad = _not_finite(row)
    if bad:
        kind = "NaN" if np.isnan(row).any() else "Inf"
        share = f" ({bad} of {row.size} values)" if row.size > 1 else ""
        remedy = "fill or drop such rows" if kind == "NaN" else "clip it to finite values"
        raise DataError(
            f"{locate(samples, index)}: array '{name}' has {kind}{share}.", hint=f"{remedy} before saving"
        )


def _warnings(
    origin: str, io: IOSpec, surveys: Mapping[str, _Survey], label: str | None, samples: int
) -> list[str]:
    result = []
    floats = {i.name for i in io.feed_inputs if "float" in i.dtype}
    for name, survey in surveys.items():
        if samples < 2 or (name not in floats and name != label):
            continue
        if survey.constant is None:
            if survey.single_value and survey.first is not None:
                result.append(f"{origin}: array '{name}' is {survey.first} in all {samples} samples.")
        elif survey.constant.size and survey.constant.all():
            result.append(f"{origin}: array '{name}' never changes in {samples} samples.")
        elif survey.constant.any():
            columns = _ranges(np.flatnonzero(survey.constant))
            result.append(f"{origin}: array '{name}' is constant in column {columns} over {samples} samples.")
    return result


def _ranges(indices: np.ndarray) -> str:
    parts = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    texts = [str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
