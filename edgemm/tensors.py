"""What a model takes and gives: names, dtypes, shapes, modalities, states. Device side: numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.errors import DataError, did_you_mean

Feed = Mapping[str, np.ndarray]
"""Input name -> array. One call's inputs; state inputs may be left out."""

Dim = int | str
"""A fixed size, or the name of a symbolic one. Equal names are equal sizes within one call."""

BATCH = "batch"
"""The symbolic dimension that counts samples. `IOSpec.batch` is this name when the batch is dynamic."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name (`"float32"`, `"int64"`, `"bool"`, `"str"`, ...) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.shape))}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A recurrent state: the session feeds output `output` of one call to input `input` of the next.

    Until the first call, and after a reset, the state is zeros: symbolic `batch` takes the feed's batch,
    any other symbolic dimension (the length of a key-value cache) starts at 0.
    """

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The smallest, usual and largest shape that an engine must accept."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IOSpec:
    """The signature of a fusion model.

    Attributes:
        inputs: Every input, states included, in the model's order.
        outputs: Every output, states included, in the model's order.
        modalities: Input name -> modality, for each input that is not a state.
        states: Inputs that are fed from an output of the call before.
        batch: `BATCH` when the batch is dynamic, the size when axis 0 is a batch of fixed size, None when the
            inputs have no batch axis at all.
        reasons: Input name -> why it has its modality (shown by `edgemm inspect`).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    modalities: Mapping[str, str]
    states: tuple[StateSpec, ...] = ()
    batch: Dim | None = BATCH
    reasons: Mapping[str, str] | None = None

    @property
    def state_inputs(self) -> frozenset[str]:
        """Names of the inputs that the session keeps between calls."""
        return frozenset(s.input for s in self.states)

    @property
    def feed_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that the caller must give on every call."""
        states = self.state_inputs
        return tuple(i for i in self.inputs if i.name not in states)

    @property
    def result_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that are no states."""
        states = {s.output for s in self.states}
        return tuple(o for o in self.outputs if o.name not in states)

    def modality_names(self) -> tuple[str, ...]:
        """Modalities in the order of the first input of each."""
        return tuple(dict.fromkeys(self.modalities[i.name] for i in self.feed_inputs))

    def no_modality(self, where: str, name: object) -> DataError:
        """Returns what to say of a name, given at `where`, that no modality has."""
        known = self.modality_names()
        return DataError(
            f"{where}: there is no modality '{name}' (modalities: {', '.join(known)}).",
            hint=did_you_mean(str(name), known, "`edgemm inspect` shows the modalities"),
        )

    def sizes(self, values: Feed) -> dict[str, int]:
        """Returns the size of each symbolic dimension that the inputs in `values` show."""
        return {
            dim: size
            for spec in self.inputs
            if spec.name in values
            for dim, size in zip(spec.shape, values[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }

    def input(self, name: str) -> TensorSpec:
        """Returns the input called `name`.

        Raises:
            DataError: There is none; the hint names the closest one.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        names = [i.name for i in self.inputs]
        raise DataError(
            f"no input '{name}' in this model (inputs: {', '.join(names)}).",
            hint=did_you_mean(name, names, "see `edgemm inspect` for the model's inputs"),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict for the manifest; `from_json` is its inverse."""
        reasons = self.reasons or {}
        return {
            "inputs": [
                {"name": i.name, "dtype": i.dtype, "shape": list(i.shape)}
                | ({"modality": self.modalities[i.name]} if i.name in self.modalities else {})
                | ({"reason": reasons[i.name]} if i.name in reasons else {})
                for i in self.inputs
            ],
            "outputs": [{"name": o.name, "dtype": o.dtype, "shape": list(o.shape)} for o in self.outputs],
            "states": [{"input": s.input, "output": s.output} for s in self.states],
            "batch": self.batch,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> IOSpec:
        """Returns the IOSpec that `to_json` wrote."""
        return cls(
            inputs=tuple(TensorSpec(i["name"], i["dtype"], tuple(i["shape"])) for i in data["inputs"]),
            outputs=tuple(TensorSpec(o["name"], o["dtype"], tuple(o["shape"])) for o in data["outputs"]),
            modalities={i["name"]: i["modality"] for i in data["inputs"] if "modality" in i},
            states=tuple(StateSpec(s["input"], s["output"]) for s in data["states"]),
            batch=data["batch"],
            reasons={i["name"]: i["reason"] for i in data["inputs"] if "reason" in i} or None,
        )


def check_feed(io: IOSpec, feed: Feed) -> None:
    """Checks one call's inputs: names, dtypes, shapes, memory layout.

    Symbolic dimensions of one name must agree across inputs. A fixed batch only has to be the same for every
    input that has it: the session runs a feed of any batch in chunks of that size.

    Raises:
        DataError: With the input's name, what came, what was expected and how to convert it.
    """
    if not isinstance(feed, Mapping):
        raise DataError(
            f"the feed is a {type(feed).__name__}, expected a mapping from input names to arrays.",
            hint=f"feed {{'{io.inputs[0].name if io.inputs else 'name'}': array, ...}}",
        )
    for name in feed:
        io.input(name)
    sizes: dict[str, tuple[int, str]] = {}
    states = io.state_inputs
    for spec in io.inputs:
        array = feed.get(spec.name)
        if array is None:
            if spec.name in states:
                continue
            raise DataError(
                f"input '{spec.name}' is missing; got {', '.join(sorted(feed)) or 'nothing'}.",
                hint=f"feed an array of {spec.dtype} {list(spec.shape)} under '{spec.name}'",
            )
        _check_array(spec, array, sizes, batch=io.batch if isinstance(io.batch, int) else None)


def convert_hint(spec: TensorSpec, dtype: np.dtype) -> str:
    """Returns how an array of another dtype becomes the input's, without losing what is in it."""
    call = f"{spec.name}.astype('{spec.dtype}')"
    if dtype.kind == "f" and spec.dtype.startswith(("int", "uint", "bool")):
        return f"give the whole numbers from before they were scaled; where these are whole, convert them: {call}"
    return f"convert it: {call}"


def _check_array(
    spec: TensorSpec, array: np.ndarray, sizes: dict[str, tuple[int, str]], *, batch: int | None
) -> None:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise DataError(
            f"input '{spec.name}': got {type(array).__name__}, expected a numpy array of {spec.dtype}.",
            hint=f"convert it: numpy.asarray({spec.name}, dtype='{spec.dtype}')",
        )
    if array.dtype.name != spec.dtype and not (array.dtype.kind == "U" and spec.dtype == "str"):
        raise DataError(
            f"input '{spec.name}': got dtype {array.dtype.name}, expected {spec.dtype}.",
            hint=convert_hint(spec, array.dtype),
        )
    if not array.dtype.isnative:
        raise DataError(
            f"input '{spec.name}': the bytes of its {spec.dtype} values are in another machine's order.",
            hint=f"convert it: {spec.name}.astype('{spec.dtype}')",
        )
    if array.ndim != len(spec.shape):
        extra = " (one axis short: add the batch axis with x[None])" if array.ndim == len(spec.shape) - 1 else ""
        raise DataError(
            f"input '{spec.name}': got shape {array.shape}, expected {list(spec.shape)}.",
            hint=f"the model takes {len(spec.shape)} axes, the array has {array.ndim}{extra}",
        )
    for axis, (got, want) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if axis == 0 and want == batch:
            want = f"{BATCH} of {batch}"  # one size for all inputs, whatever it is
        if isinstance(want, int):
            if got != want:
                raise DataError(
                    f"input '{spec.name}': got shape {array.shape}, expected {list(spec.shape)}.",
                    hint=f"axis {axis} must be {want}; it was fixed when the model was converted",
                )
        else:
            known = sizes.setdefault(want, (got, spec.name))
            if known[0] != got:
                raise DataError(
                    f"input '{spec.name}': axis {axis} ('{want}') is {got}, "
                    f"but input '{known[1]}' has {known[0]} there.",
                    hint=f"every input must agree on '{want}'",
                )
    if not array.flags.c_contiguous:
        raise DataError(
            f"input '{spec.name}': the array is not C-contiguous (strides {array.strides}).",
            hint=f"copy it: numpy.ascontiguousarray({spec.name})",
        )
