"""What stands in front of a model: which of its inputs are made of which raw arrays, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BundleError, DataError, EdgemmError, RecipeError
from edgemm.preprocess.registry import parse, to_json
from edgemm.preprocess.step import Step, name_of, output_of, run
from edgemm.tensors import Dim, IOSpec, TensorSpec

_TRIED = 1 << 16
"""Sizes that are tried to find the smallest one."""


@dataclass(frozen=True, slots=True)
class InputSteps:
    """How one input of a model is made.

    Attributes:
        input: The model's input.
        raw: The array that the app gives: its name (that of the input, unless several inputs read one array),
            dtype and shape, the batch at axis 0.
        steps: In order.
        called: What the model calls each size of the input; None where it is not known.
    """

    input: str
    raw: TensorSpec
    steps: tuple[Step, ...]
    called: tuple[Dim, ...] | None = None

    @property
    def made(self) -> TensorSpec:
        """What the steps make, named as the input; open sizes that they make are called as in the model."""
        made = output_of(self.steps, self.raw)
        names = made.shape if self.called is None or len(self.called) != len(made.shape) else self.called
        kept = self.raw.shape
        shape = tuple(d if isinstance(d, int) or d in kept else n for d, n in zip(made.shape, names, strict=True))
        return replace(made, name=self.input, shape=shape)

    def __str__(self) -> str:
        return " -> ".join((str(self.raw), *(name_of(s) for s in self.steps), str(self.made)))

    def make(self, batch: np.ndarray) -> np.ndarray:
        """Returns the input of a batch of raw data.

        Raises:
            DataError: A step cannot take it; the message names the raw array.
        """
        try:
            return run(self.steps, batch)
        except DataError as error:
            raise DataError(f"input '{self.raw.name}': {error}", hint=error.hint) from error

    def takes(self, axis: int, size: int) -> bool:
        """Returns whether the steps take raw data of this size along an axis."""
        shape = (*self.raw.shape[:axis], size, *self.raw.shape[axis + 1 :])
        try:
            output_of(self.steps, replace(self.raw, shape=shape))
        except DataError:
            return False
        return True

    def row(self, row: np.ndarray) -> np.ndarray:
        """Returns the input's row of one sample's raw row, both without the batch axis."""
        made: np.ndarray = self.make(np.asarray(row)[None])[0]
        return made

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; `from_json` is the inverse."""
        raw = {"name": self.raw.name, "dtype": self.raw.dtype, "shape": list(self.raw.shape)}
        return {"input": self.input, "raw": raw, "steps": to_json(self.steps)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: Path | None = None) -> InputSteps:
        """Returns what `to_json` wrote; files that options name are below `folder`.

        Raises:
            BundleError: It is something else, or has steps that this edgemm does not know.
        """
        try:
            raw = TensorSpec(data["raw"]["name"], data["raw"]["dtype"], tuple(data["raw"]["shape"]))
            return cls(data["input"], raw, parse(data["steps"], folder))
        except EdgemmError as error:
            raise BundleError(f"manifest: {error}", hint="update edgemm on this device") from error
        except (KeyError, TypeError) as error:
            hint = "the bundle is damaged or was edited; copy it again, or convert the model again"
            raise BundleError(f"manifest: 'preprocess' is malformed ({error!r}).", hint=hint) from error


def least_sizes(ways: Sequence[InputSteps]) -> dict[str, int]:
    """Returns the smallest sizes of raw arrays with one open size, by its name; 1 is not among them.

    A spectrum has no frame of fewer samples than its window, before which they may be resampled.
    """
    result: dict[str, int] = {}
    for way in ways:
        opened = [(axis, dim) for axis, dim in enumerate(way.raw.shape) if axis and isinstance(dim, str)]
        if len(opened) != 1:
            continue  # what one size may be depends on the other
        ((axis, dim),) = opened
        least = next((size for size in range(1, _TRIED) if way.takes(axis, size)), 1)
        if least > 1:
            result[dim] = max(least, result.get(dim, 0))
    return result


def named(io: IOSpec, ways: Sequence[InputSteps]) -> tuple[InputSteps, ...]:
    """Returns the steps in the words of a model: each open size that it sees has one name.

    What steps make of an open size is called as the model's input has it; an open size of raw data that comes
    through the steps as it is, too, unless the recipe has given it another name.

    Args:
        io: The model's signature.
        ways: That fit it.
    """
    words: dict[tuple[str, Dim], Dim] = {}
    for way in ways:
        own = {unnamed_size(way.raw.name, axis) for axis in range(len(way.raw.shape))} & set(way.raw.shape)
        for got, want in zip(way.made.shape, io.input(way.input).shape, strict=True):
            if got in own and isinstance(want, str):
                words.setdefault((way.raw.name, got), want)

    def in_words(way: InputSteps) -> InputSteps:
        shape = tuple(words.get((way.raw.name, d), d) for d in way.raw.shape)
        return replace(way, raw=replace(way.raw, shape=shape), called=io.input(way.input).shape)

    return tuple(map(in_words, ways))


def unnamed_size(name: str, axis: int) -> str:
    """Returns what an open size of a raw array is called that the recipe has no name for: `sound_1`."""
    return f"{name}_{axis}"


class Front:
    """Runs the steps of a model on the host.

    Attributes:
        io: The signature with raw arrays in the place of the inputs that are made of them.
    """

    def __init__(self, io: IOSpec, ways: Sequence[InputSteps]) -> None:
        """Stands in front of a model with the signature `io`.

        Raises:
            RecipeError: What the steps make does not fit.
        """
        fitted(io, ways)
        self.io = renamed(io, ways)
        self._ways = tuple(ways)
        self._raws = frozenset(way.raw.name for way in ways)

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the model's inputs of raw arrays that were checked; what no step reads goes through."""
        made = {name: value for name, value in feed.items() if name not in self._raws}
        made |= {way.input: way.make(feed[way.raw.name]) for way in self._ways if way.raw.name in feed}
        return made


def fitted(io: IOSpec, ways: Sequence[InputSteps]) -> dict[str, Dim]:
    """Returns the sizes that follow from the steps, by the model's symbolic dimension.

    Raises:
        RecipeError: What the steps make is not what the model takes, or raw arrays of one name differ.
    """
    sizes: dict[str, Dim] = {}
    raws: dict[str, TensorSpec] = {}
    for way in ways:
        made, wanted = way.made, io.input(way.input)
        _check_raw(io, way, raws.setdefault(way.raw.name, way.raw))
        fits = made.dtype == wanted.dtype and len(made.shape) == len(wanted.shape)
        for got, want in zip(made.shape, wanted.shape, strict=False):
            if isinstance(want, str) and isinstance(got, int):
                fits = fits and sizes.setdefault(want, got) == got
            elif isinstance(want, str) and got != want and got in way.raw.shape:
                sizes.setdefault(want, got)
            elif isinstance(want, str) and got != want and want in way.raw.shape:
                raise RecipeError(
                    f"input '{way.input}': the raw array '{way.raw.name}' has a size '{want}', and the model "
                    "calls another size so.",
                    hint=f"call it otherwise: inputs.{way.input}.raw: {{shape: [samples]}}, for example",
                )
            elif isinstance(want, int):
                fits = fits and got == want
        if not fits:
            raise RecipeError(
                f"input '{way.input}': preprocess gives {made.dtype} {_text(made)}, the model takes "
                f"{wanted.dtype} {_text(wanted)}.",
                hint=f"the steps are {way}; docs/preprocessing.md says what each makes",
            )
    return sizes


def renamed(io: IOSpec, ways: Sequence[InputSteps], sizes: Mapping[str, Dim] | None = None) -> IOSpec:
    """Returns the signature of a model with its steps in front: raw arrays take the places of its inputs.

    Args:
        io: The model's.
        ways: The steps.
        sizes: Of symbolic dimensions; None: those of `fitted`, which runs the steps' checks.

    Raises:
        RecipeError: What the steps make does not fit.
    """
    sizes = fitted(io, ways) if sizes is None else sizes
    by_input = {way.input: way.raw for way in ways}

    def sized(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in spec.shape))

    inputs = dict.fromkeys(by_input.get(spec.name) or sized(spec) for spec in io.inputs)
    reasons = io.reasons
    return replace(
        io,
        inputs=tuple(inputs),
        outputs=tuple(sized(spec) for spec in io.outputs),
        modalities=_renamed_keys(io.modalities, by_input),
        reasons=None if reasons is None else _renamed_keys(reasons, by_input),
    )


def _renamed_keys(values: Mapping[str, str], by_input: Mapping[str, TensorSpec]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in values.items():
        result.setdefault(by_input[name].name if name in by_input else name, value)
    return result


def _check_raw(io: IOSpec, way: InputSteps, first: TensorSpec) -> None:
    """Checks that a raw array is the same for all that is made of it, and is of one modality."""
    if way.raw != first:
        raise RecipeError(
            f"input '{way.input}': its source is {way.raw}, and {first} for another input.",
            hint="inputs that read one raw array agree on `raw`",
        )
    others = {t.name for t in (*io.inputs, *io.outputs)} - {way.input}
    if way.raw.name in others:
        raise RecipeError(
            f"input '{way.input}': its source '{way.raw.name}' is another input or output of the model.",
            hint="give the raw array a name of its own",
        )


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"
