"""How samples of several sensors become sets for one call: what triggers, what may lack, how old it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from edgemm.errors import BundleError, DataError, did_you_mean
from edgemm.runtime.heads import head_name
from edgemm.runtime.stand_ins import STORED, StandIns
from edgemm.tensors import IOSpec, TensorSpec

Drop = Literal["keep-newest", "drop-oldest", "block"]

ANY = "any"
"""The trigger that every sample is."""

FILLS = ("fail", "last", "zeros", "constant:VALUE")
"""Fills that are computed from nothing but the samples."""


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """What a stream does with its samples. Times are in seconds, of one clock for all modalities.

    Attributes:
        trigger: What a set is made for: each sample of the modality named here, `"any"` sample, or a tick of a
            clock, this many times a second.
        optional: Modality -> what goes in where no sample fits: `"last"`, the newest one, however old; `"zeros"`;
            `"constant:0.5"`; an array, or a dict of arrays by input, without the batch axis; of the bundle
            `"blank"`, a sample of a silent sensor, `"mean"`, the mean of what its encoder gives, or `"learned"`, a
            trained value of that, both without running the encoder; `"head:NAME"`, another head of the bundle in
            the place of the fusion head; `"fail"`, the default of modalities that are not listed: there is no set
            then.
        window: Most time between the set and a sample, before or after; of the samples within, the nearest is
            taken. One number, or by modality. A modality without a window goes in with the newest sample that was
            captured no later than the set's time.
        max_age: Most time by which a sample may be older than the set. One number, or by modality.
        offset: Modality -> what is added to its capture times, for sensors whose clock or exposure is off.
        timeout: How long a set waits for samples that are still to come, from when its trigger arrived; None is
            the largest window, and 0 without any.
        queue: Samples of each modality that wait.
        drop: What gives way to a sample that triggers when its queue is full: `"keep-newest"`, all that wait;
            `"drop-oldest"`; `"block"`: `push` waits. Of other modalities it is always the oldest.
        reject_nan: Whether a sample with NaN in it is refused and counted.
    """

    trigger: str | float = ANY
    optional: Mapping[str, Any] = field(default_factory=dict)
    window: float | Mapping[str, float] | None = None
    max_age: float | Mapping[str, float] | None = None
    offset: Mapping[str, float] = field(default_factory=dict)
    timeout: float | None = None
    queue: int = 8
    drop: Drop = "keep-newest"
    reject_nan: bool = True

    def check(self, io: IOSpec, stand_ins: StandIns | None = None) -> None:
        """Checks every field against the model.

        Args:
            io: Its signature.
            stand_ins: What its bundle holds; None while there is no bundle.

        Raises:
            DataError: An unknown modality, a time or number out of range, a fill that does not fit.
            BundleError: A fill that needs what the bundle does not hold.
        """
        known = io.modality_names()
        for name in ("optional", "offset"):
            if not isinstance(getattr(self, name), Mapping):
                _refuse(name, getattr(self, name), "a mapping from modalities")
        if isinstance(self.trigger, str):
            if self.trigger != ANY:
                _known("trigger", self.trigger, io)
        elif not is_number(self.trigger) or self.trigger <= 0:
            _refuse("trigger", self.trigger, "a modality, 'any' or a rate in hertz above 0")
        for name in ("window", "max_age"):
            value = getattr(self, name)
            by_modality = value if isinstance(value, Mapping) else {} if value is None else {known[0]: value}
            for modality, seconds in by_modality.items():
                _known(name, modality, io)
                if not is_number(seconds, infinite=True) or seconds < 0:
                    _refuse(f"{name} of '{modality}'", seconds, "seconds, 0 or more")
        for modality, seconds in self.offset.items():
            _known("offset", modality, io)
            if not is_number(seconds):
                _refuse(f"offset of '{modality}'", seconds, "seconds")
        if self.timeout is not None and (not is_number(self.timeout) or self.timeout < 0):
            _refuse("timeout", self.timeout, "seconds, 0 or more, or None")
        if not isinstance(self.queue, Integral) or isinstance(self.queue, bool) or self.queue < 1:
            _refuse("queue", self.queue, "1 or more samples")
        if self.drop not in get_args(Drop):
            _refuse("drop", self.drop, f"one of {', '.join(get_args(Drop))}")
        if not isinstance(self.reject_nan, (bool, np.bool_)):
            _refuse("reject_nan", self.reject_nan, "True or False")
        for modality, fill in self.optional.items():
            _known("optional", modality, io)
            if self.reject_nan and _has_nan(fill):
                _refuse(f"optional: the fill of '{modality}'", "NaN", "numbers, with reject_nan")
            _check_fill(io, modality, fill, frozenset(known) - self.optional.keys(), stand_ins)

    def seconds(self, name: Literal["window", "max_age"], modality: str) -> float | None:
        """Returns the window or the greatest age of a modality, None where it has none."""
        value: float | Mapping[str, float] | None = getattr(self, name)
        return value.get(modality) if isinstance(value, Mapping) else value

    def patience(self, modalities: tuple[str, ...]) -> float:
        """Returns how long a set waits for what is still to come."""
        if self.timeout is not None:
            return self.timeout
        windows = [self.seconds("window", m) for m in modalities]
        return max([w for w in windows if w is not None and math.isfinite(w)], default=0.0)

    def fill(self, modality: str) -> Any:
        """Returns what goes in where no sample of `modality` fits; `"fail"` for one that is required."""
        return self.optional.get(modality, "fail")

    def fill_name(self, modality: str) -> str:
        """Returns what to call that: the fill, or `"array"` of one that the caller gave."""
        fill = self.fill(modality)
        return fill if isinstance(fill, str) else "array"


def policy_of(stored: Mapping[str, Any], given: Mapping[str, Any]) -> StreamPolicy:
    """Returns the policy of a bundle, with the fields that a call gives in the place of its own.

    Raises:
        BundleError: The bundle names a field that there is not.
        DataError: The call does.
    """
    known = [f.name for f in fields(StreamPolicy)]
    for name in given:
        if name not in known:
            raise DataError(
                f"stream: there is no '{name}' (fields: {', '.join(known)}).",
                hint=did_you_mean(name, known, "see StreamPolicy"),
            )
    if strange := [name for name in stored if name not in known]:
        raise BundleError(
            f"stream: there is no field '{strange[0]}' (fields: {', '.join(known)}).",
            hint="made by a newer edgemm? update edgemm on this device: pip install --upgrade edgemm",
        )
    return StreamPolicy(**{**stored, **given})


def inputs_of(io: IOSpec, modality: str) -> tuple[TensorSpec, ...]:
    """Returns the inputs of a modality in the model's order."""
    return tuple(i for i in io.feed_inputs if io.modalities[i.name] == modality)


def fill_value(
    io: IOSpec, modality: str, fill: Any, like: Mapping[str, np.ndarray] | None, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Returns the arrays that stand for a modality without a sample, with the batch axis.

    Args:
        io: Of the model.
        modality: That lacks.
        fill: A fill other than `"last"` and `"fail"`.
        like: A sample of it, from which sizes are taken that the model leaves open.
        sizes: Symbolic dimension -> size, of the other samples of the set.
    """
    filled = {}
    for spec in inputs_of(io, modality):
        if isinstance(fill, str):
            number = float(fill.partition(":")[2] or 0)
            filled[spec.name] = np.full(_shape(io, spec, like, sizes), number, spec.dtype)
            continue
        value = np.array(fill[spec.name] if isinstance(fill, Mapping) else fill, dtype=spec.dtype, order="C")
        if spec.shape[:1] == (io.batch,):
            value = np.repeat(value[None], io.batch if isinstance(io.batch, int) else 1, axis=0)
        filled[spec.name] = value
    return filled


def _shape(
    io: IOSpec, spec: TensorSpec, like: Mapping[str, np.ndarray] | None, sizes: Mapping[str, int]
) -> tuple[int, ...]:
    if like is not None:
        return like[spec.name].shape
    return tuple(d if isinstance(d, int) else 1 if d == io.batch else sizes[d] for d in spec.shape)


def _check_fill(
    io: IOSpec, modality: str, fill: Any, required: frozenset[str], stand_ins: StandIns | None
) -> None:
    specs = inputs_of(io, modality)
    if isinstance(fill, str):
        kind, _, number = fill.partition(":")
        if fill in STORED or head_name(fill) is not None:
            _check_stored(io, modality, fill, required, stand_ins)
            return
        if kind == "constant":
            try:
                float(number)
            except ValueError:
                _refuse(f"optional: the fill of '{modality}'", fill, "constant:VALUE with a number")
        elif fill not in FILLS:
            known = (*FILLS, *STORED)
            raise DataError(
                f"optional: the fill of '{modality}' is '{fill}', expected {', '.join(known)} or an array.",
                hint=did_you_mean(kind, known, "a modality that must be there is not listed"),
            )
        if kind in ("zeros", "constant"):
            _check_sizes(io, modality, fill, required)
        return
    if not isinstance(fill, Mapping) and len(specs) > 1:
        names = [s.name for s in specs]
        _refuse(f"optional: the fill of '{modality}'", type(fill).__name__, f"a dict of {', '.join(names)}")
    if is_number(fill):
        raise DataError(
            f"optional: the fill of '{modality}' is the number {fill}.",
            hint=f"did you mean 'constant:{fill}'? an array has the shape of a sample",
        )
    for spec in specs:
        value = fill.get(spec.name) if isinstance(fill, Mapping) else fill
        wanted = spec.shape[1:] if spec.shape[:1] == (io.batch,) else spec.shape
        shape = np.shape(value) if value is not None else None
        fits = shape is not None and len(shape) == len(wanted)
        fits = fits and all(isinstance(w, str) or g == w for g, w in zip(shape or (), wanted, strict=True))
        if not fits:
            what = f"shape {shape}" if shape is not None else "nothing"
            _refuse(f"optional: the fill of '{modality}' for '{spec.name}'", what, f"{list(wanted)}")


def _check_stored(
    io: IOSpec, modality: str, fill: str, required: frozenset[str], stand_ins: StandIns | None
) -> None:
    if stand_ins is None:
        return
    placed = stand_ins.find(modality, fill)
    if placed is None:
        raise stand_ins.refuse(modality, fill, ", ".join((*FILLS, *stand_ins.fills(modality))))
    if any(row.ndim == 0 for row in placed.inputs.values()):
        _check_sizes(io, modality, fill, required)


def _check_sizes(io: IOSpec, modality: str, fill: str, required: frozenset[str]) -> None:
    """A size that the model leaves open must come from a modality that is always there."""
    given = {d for m in required for spec in inputs_of(io, m) for d in spec.shape}
    for spec in inputs_of(io, modality):
        for dim in spec.shape:
            if isinstance(dim, str) and dim != io.batch and dim not in given:
                raise DataError(
                    f"optional: '{fill}' for '{modality}' has no size for '{dim}' of '{spec.name}'.",
                    hint="give an array as the fill",
                )


def _known(where: str, modality: str, io: IOSpec) -> None:
    if modality not in io.modality_names():
        raise io.no_modality(where, modality)


def is_number(value: object, *, infinite: bool = False) -> bool:
    """Returns whether `value` is a finite number, of Python or numpy; with `infinite` infinity is one, too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return math.isfinite(value) or (infinite and value == math.inf)


def _has_nan(fill: Any) -> bool:
    if isinstance(fill, str):
        return fill.partition(":")[2].strip().lower().lstrip("+-") == "nan"
    values = [np.asarray(value) for value in (fill.values() if isinstance(fill, Mapping) else [fill])]
    return any(value.dtype.kind == "f" and bool(np.isnan(value).any()) for value in values)


def _refuse(what: str, got: object, expected: str) -> None:
    raise DataError(f"{what}: got {got!r:.60}, expected {expected}.", hint="see StreamPolicy for what it may be")
