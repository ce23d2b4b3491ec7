"""Samples in which a modality is silent, as on the device when a sensor drops out.

A model calibrated on complete samples alone may agree with float on a third of those that lack a modality. What
"silent" is depends on the sensor: zeros, a noise floor, the mean, a constant, or a recording (`Blank`).
Calibration mixes a share of such samples in (`with_blanks`); search and evaluation use whole twins of a set
(`blank_twins`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.data.samples import Sample, Samples, digest_of, locate, names_of, origin_of, spread
from edgemm.errors import DataError, did_you_mean
from edgemm.tensors import IOSpec

KINDS = ("zeros", "mean", "silence", "constant", "file")

MEAN_SAMPLES = 512
"""Most samples, spread evenly, that a mean is taken over."""


@dataclass(frozen=True, slots=True)
class Blank:
    """What an input looks like when its modality is silent.

    Attributes:
        kind: `"zeros"`; `"mean"` of the data, element by element; `"silence"`, normal noise of standard deviation
            `value`, another in every sample; `"constant"`, `value` everywhere; `"file"`, the array in `path`.
        value: Of silence and constant, in the units of the input.
        path: A `.npy` file with one row (without the batch axis), or one that numpy can repeat to its shape.
    """

    kind: str = "zeros"
    value: float = 0.0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Blank:
        """Returns the blank that `zeros`, `mean`, `silence:1e-3`, `constant:0.5` or `FILE.npy` names.

        Raises:
            DataError: None of these.
        """
        kind, colon, number = text.partition(":")
        if kind in ("silence", "constant"):
            with suppress(ValueError):
                value = float(number) if colon else 1e-3 if kind == "silence" else 0.0
                if math.isfinite(value):
                    return cls(kind, value)
        elif kind in ("zeros", "mean") and not colon:
            return cls(kind)
        elif text.endswith(".npy"):
            return cls("file", path=text)
        raise DataError(
            f"blank: got '{text}', expected zeros, mean, silence:LEVEL, constant:VALUE or FILE.npy.",
            hint=did_you_mean(kind, KINDS, "for example image=zeros, audio=silence:1e-3"),
        )


ZEROS = Blank()


@dataclass(frozen=True, slots=True)
class BlankValues:
    """What to put in the place of a row, by input; made by `blank_values`.

    Attributes:
        inputs: Modality -> its inputs that can be blank: float ones, and those that a blank was given for.
        blanks: Input -> what blank is; zeros for those not listed.
        arrays: Input -> one row or a single number, for means and files.
        seed: Of the noise.
    """

    inputs: Mapping[str, frozenset[str]]
    blanks: Mapping[str, Blank] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    seed: int = 0

    def row(self, name: str, row: np.ndarray, index: int) -> np.ndarray:
        """Returns the silent form of `row` of sample `index`: same shape and dtype, the same in every call."""
        blank = self.blanks.get(name, ZEROS)
        row = np.asarray(row)
        if blank.kind == "silence":
            random = np.random.default_rng([self.seed, zlib.crc32(name.encode()), index])
            return (random.standard_normal(row.shape) * blank.value).astype(row.dtype)
        if blank.kind in ("mean", "file"):
            return np.ascontiguousarray(np.broadcast_to(self.arrays[name], row.shape)).astype(row.dtype)
        return np.full_like(row, blank.value if blank.kind == "constant" else 0)


@dataclass(frozen=True, slots=True)
class Blanked:
    """Another source in which some samples lack a modality.

    Attributes:
        source: The samples.
        inputs: Sample index -> names of the arrays that are blank there.
        values: What blank is; None is zeros.
    """

    source: Samples
    inputs: Mapping[int, frozenset[str]]
    values: BlankValues | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        blank = self.inputs.get(index, frozenset())
        if not blank:
            return sample
        values = self.values or BlankValues({})
        return {k: values.row(k, v, index) if k in blank else v for k, v in sample.items()}

    @property
    def origin(self) -> str:
        """The source's origin."""
        return origin_of(self.source)

    @property
    def names(self) -> tuple[str, ...]:
        """The source's names."""
        return names_of(self.source)

    @property
    def digest(self) -> str:
        """The sha256 over the samples with their blanks, in order."""
        return digest_of(self)

    def locate(self, index: int) -> str:
        """Returns where sample `index` is in the source."""
        return locate(self.source, index)


class _Always(Mapping[int, frozenset[str]]):
    """The same names for every sample."""

    def __init__(self, names: frozenset[str], count: int) -> None:
        self._names, self._count = names, count

    def __getitem__(self, index: int) -> frozenset[str]:
        return self._names

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Any:
        return iter(range(self._count))


def blank_values(
    io: IOSpec, samples: Samples, blanks: Mapping[str, Blank] | None = None, seed: int = 0
) -> BlankValues:
    """Returns what a silent modality looks like for the inputs of `io`.

    Means are taken over at most `MEAN_SAMPLES` of `samples`, element by element, or over all elements where the
    rows differ in shape; take them from the calibration samples and use the result for every split.

    Args:
        io: The model's signature.
        samples: Where means come from.
        blanks: Input or modality -> its blank; what is not listed is zeros. Inputs that are no floats (token ids,
            masks) have no zero that means silence: they stay as they are unless they are listed themselves.
        seed: Of the noise in silence.

    Raises:
        DataError: A name that is neither input nor modality, an unknown kind, or a file that does not fit.
    """
    floats = {i.name for i in io.feed_inputs if i.dtype.startswith("float")}
    inputs = {i.name: i for i in io.feed_inputs}
    chosen: dict[str, Blank] = {}
    for name, blank in sorted(
        (blanks or {}).items(), key=lambda item: item[0] in inputs
    ):  # an input outdoes its modality
        members = [name] if name in inputs else [i for i in inputs if io.modalities[i] == name and i in floats]
        if not members:
            known = [*inputs, *io.modality_names()]
            raise DataError(
                f"blank: no float input or modality '{name}' (inputs: {', '.join(inputs)}).",
                hint=did_you_mean(name, known, "name an input, or a modality with a float input"),
            )
        if blank.kind not in KINDS:
            raise DataError(
                f"blank of '{name}': no kind '{blank.kind}' (kinds: {', '.join(KINDS)}).",
                hint=did_you_mean(blank.kind, KINDS, "zeros is the default"),
            )
        chosen |= dict.fromkeys(members, blank)
    arrays = {name: _load(name, blank.path, samples) for name, blank in chosen.items() if blank.kind == "file"}
    means = [name for name, blank in chosen.items() if blank.kind == "mean"]
    by_modality: dict[str, set[str]] = {}
    for name in inputs:
        if name in floats or name in chosen:
            by_modality.setdefault(io.modalities[name], set()).add(name)
    return BlankValues(
        {m: frozenset(names) for m, names in by_modality.items()},
        chosen,
        arrays | (_means(samples, means) if means else {}),
        seed,
    )


def with_blanks(
    samples: Samples, io: IOSpec, share: float, seed: int, values: BlankValues | None = None
) -> tuple[Blanked, dict[str, int]]:
    """Returns `samples` with `share` of them blank per modality, and how many are blank by modality.

    No sample loses two modalities, and a model of one modality loses none. The other samples stay complete.

    Args:
        samples: Complete samples.
        io: The model's signature.
        share: Of the samples, per modality, 0 to 0.5.
        seed: Of the choice of samples.
        values: From `blank_values`; None is zeros for float inputs.
    """
    values = values or blank_values(io, samples, seed=seed)
    count = min(round(share * len(samples)), len(samples) // (len(values.inputs) + 1))
    if len(io.modality_names()) < 2 or count == 0:
        return Blanked(samples, {}, values), {}
    order = np.random.default_rng(seed).permutation(len(samples))
    blank = {}
    for number, names in enumerate(values.inputs.values()):
        for index in order[number * count : (number + 1) * count]:
            blank[int(index)] = names
    return Blanked(samples, blank, values), dict.fromkeys(values.inputs, count)


def blank_twins(samples: Samples, io: IOSpec, values: BlankValues | None = None) -> dict[str, Blanked]:
    """Returns, for every modality that can be blank, `samples` with that modality blank in every one.

    The twins are made as `with_blanks` makes its samples, and read through to `samples`: they take no memory. A
    model of one modality has none. Labels stay, though a sample without its modality may no longer show them:
    compare the outputs with those of the float model on the same twin.

    Args:
        samples: Complete samples, of any split.
        io: The model's signature.
        values: From `blank_values` (over the calibration samples); None is zeros for float inputs.
    """
    values = values or blank_values(io, samples)
    if len(io.modality_names()) < 2:
        return {}
    return {m: Blanked(samples, _Always(names, len(samples)), values) for m, names in values.inputs.items()}


def never_blank(io: IOSpec, values: BlankValues) -> tuple[str, ...]:
    """Returns a warning for each modality that is never silent, because nothing says what its inputs are then."""
    modalities = io.modality_names()
    silent = [m for m in modalities if len(modalities) > 1 and m not in values.inputs]
    first = {m: next(i.name for i in io.feed_inputs if io.modalities[i.name] == m) for m in silent}
    return tuple(
        f"modality '{m}' has integer inputs only: no sample is run with it silent; if it can drop out on the "
        f"device, say what it gives then, for example --blank {first[m]}=constant:0"
        for m in silent
    )


def _load(name: str, path: str, samples: Samples) -> np.ndarray:
    try:
        array: np.ndarray = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"blank of '{name}': {path} is no .npy file that can be read: {error}.",
            hint="write one silent row with numpy.save",
        ) from error
    want = np.shape(samples[0][name])
    try:
        np.broadcast_to(array, want)
    except ValueError as error:
        raise DataError(
            f"blank of '{name}': {path} has the shape {array.shape}, a row of '{name}' has {want}.",
            hint="save one row without the batch axis, or a single number",
        ) from error
    return array


def _means(samples: Samples, names: list[str]) -> dict[str, np.ndarray]:
    """Returns the mean row of each array, or one number for an array whose rows differ in shape."""
    taken = spread(len(samples), MEAN_SAMPLES)
    sums: dict[str, np.ndarray] = {}
    totals = {name: [0.0, 0] for name in names}
    even = dict.fromkeys(names, True)
    for index in taken:
        sample = samples[int(index)]
        for name in names:
            row = np.asarray(sample[name], np.float64)
            totals[name][0] += float(row.sum())
            totals[name][1] += row.size
            even[name] = even[name] and row.shape == sums.setdefault(name, np.zeros_like(row)).shape
            if even[name]:
                sums[name] = sums[name] + row
    return {
        name: sums[name] / len(taken) if even[name] else np.asarray(totals[name][0] / max(totals[name][1], 1))
        for name in names
    }
