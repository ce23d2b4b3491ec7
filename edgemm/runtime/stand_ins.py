"""What a bundle holds for modalities without a sample, and where it goes in: at an input, or behind an encoder.

A blank sample goes into the encoder as a real one would. The mean of an encoder's outputs, or a trained value of
them, goes in behind it: the encoder does not run. That takes an engine of its own for the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgemm.bundle import Manifest, StandIn, Variant
from edgemm.errors import BundleError
from edgemm.runtime.heads import HEAD, Instead, OpenHead, head_name, place_head
from edgemm.tensors import Dim, IOSpec, TensorSpec

STORED = ("blank", "mean", "learned")
"""Fills that a bundle may hold."""

BEHIND = ("mean", "learned")
"""Those that go in behind an encoder."""

Behind = Instead
"""Engine that does not run -> output -> what it is instead, or the head that gives it. A state that is not among
the outputs stays as it was."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A stand-in for one modality, where it goes into a variant.

    Attributes:
        inputs: Input -> one row (without the batch axis), or a number without axes that all of it is.
        engines: Engine that does not run -> output -> one row.
        specs: Tensor -> what it is, of those in `engines`.
        heads: Of another head: what becomes of each engine that does not run.
    """

    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    engines: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    specs: Mapping[str, TensorSpec] = field(default_factory=dict)
    heads: Instead = field(default_factory=dict)

    def feed(self, io: IOSpec, modality: str, sizes: Mapping[str, int], batch: int = 1) -> dict[str, np.ndarray]:
        """Returns the inputs of the modality; where nothing reads one, zeros of any size.

        Args:
            io: Of the model.
            modality: That lacks.
            sizes: Symbolic dimension -> size.
            batch: Samples.
        """
        specs = [i for i in io.feed_inputs if io.modalities[i.name] == modality]
        known = {**_own_sizes(specs, self.inputs, io.batch), **sizes}
        feed = {}
        for spec in specs:
            row = self.inputs.get(spec.name)
            if row is not None and row.ndim:
                feed[spec.name] = batched(spec, row, io.batch, batch)
                continue
            shape = [d if isinstance(d, int) else batch if d == io.batch else known.get(d, 1) for d in spec.shape]
            feed[spec.name] = np.full(shape, 0 if row is None else row, spec.dtype)
        return feed

    def behind(self, io: IOSpec, batch: int = 1) -> Behind:
        """Returns the outputs of engines that do not run, for so many samples."""
        rows = {
            engine: {name: batched(self.specs[name], row, io.batch, batch) for name, row in outputs.items()}
            for engine, outputs in self.engines.items()
        }
        return {**rows, **self.heads}


class StandIns:
    """The stand-ins of one variant."""

    def __init__(
        self,
        manifest: Manifest,
        variant: Variant,
        found: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
        heads: Mapping[str, OpenHead] | None = None,
    ) -> None:
        """Places `found`, (modality, fill) -> tensor -> row, and heads, as far as the variant's engines allow."""
        self._layout = variant.layout
        self.heads: Mapping[str, OpenHead] = heads or {}
        self._placed: dict[tuple[str, str], Placed] = {}
        for key, arrays in found.items():
            placed = _place(manifest, variant, arrays)
            if placed is not None:
                self._placed[key] = placed
        for name, head in self.heads.items():
            for modality in manifest.io.modality_names():
                if (instead := place_head(manifest, variant, head, modality)) is not None:
                    self._placed[modality, f"{HEAD}:{name}"] = Placed(heads=instead)

    def find(self, modality: str, fill: str) -> Placed | None:
        """Returns the stand-in, None where there is none."""
        return self._placed.get((modality, fill))

    def fills(self, modality: str) -> tuple[str, ...]:
        """Returns what there is for a modality."""
        return tuple(fill for (of, fill) in self._placed if of == modality)

    def refuse(self, modality: str, fill: str, others: str) -> BundleError:
        """Returns what to say where there is none.

        Args:
            modality: That is to be filled.
            fill: What was asked for.
            others: Fills that there are for it.
        """
        if fill in BEHIND and self._layout == "whole":
            why = "the whole model is one engine: convert with --layout staged"
        elif fill == "learned":
            why = f"convert with --learn-missing {modality}, which is kept where it beats the mean"
        elif fill == "mean":
            why = "convert with calibration samples (--calib)"
        elif (head := head_name(fill)) is not None:
            why = f"convert with --head {head}=MODEL, a head that does not take '{modality}', and --layout staged"
        else:
            why = f"convert with --blank INPUT=WHAT for the inputs of '{modality}'"
        return BundleError(
            f"optional: the bundle holds no '{fill}' for '{modality}'.",
            hint=f"{why}; or use one of {others}, or give the array that stands for a silent '{modality}'",
        )


def load_stand_ins(
    folder: Path, manifest: Manifest, variant: Variant, heads: Mapping[str, OpenHead] | None = None
) -> StandIns:
    """Returns the stand-ins of a bundle, whose files are verified, for one of its variants; `heads` fit it.

    Raises:
        BundleError: A file holds no array, or none that fits its tensor.
    """
    inputs = {i.name: i for i in manifest.io.inputs}
    specs = _outputs(manifest) | inputs
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for entry in manifest.stand_ins:
        if entry.variant in ("", variant.name):
            found[entry.modality, entry.fill] = {
                name: _load(folder, entry, specs[name], value, manifest.io.batch, whole=name not in inputs)
                for name, value in entry.arrays.items()
            }
    return StandIns(manifest, variant, found, heads)


def batched(spec: TensorSpec, row: np.ndarray, batch_dim: Dim | None, batch: int) -> np.ndarray:
    """Returns `row` as a whole tensor: repeated along the batch axis, if it has one."""
    if not has_batch(spec, batch_dim):
        return np.array(row, order="C")
    return np.repeat(row[None], batch_dim if isinstance(batch_dim, int) else batch, axis=0)


def has_batch(spec: TensorSpec, batch_dim: Dim | None) -> bool:
    """Returns whether axis 0 of a tensor counts samples."""
    return batch_dim is not None and spec.shape[:1] == (batch_dim,)


def _outputs(manifest: Manifest) -> dict[str, TensorSpec]:
    return {o.name: o for stage in manifest.stages for o in stage.outputs}


def _place(manifest: Manifest, variant: Variant, arrays: Mapping[str, np.ndarray]) -> Placed | None:
    """Returns where the arrays go in; None where an engine would have to run for a part of them."""
    known = {i.name for i in manifest.io.inputs}
    behind = arrays.keys() - known
    states = {s.output for s in manifest.io.states}
    engines = {
        engine.name: {name: arrays[name] for name in engine.outputs if name in behind}
        for engine in variant.engines
        if behind & set(engine.outputs) and set(engine.outputs) <= behind | states
    }
    if behind != {name for outputs in engines.values() for name in outputs}:
        return None
    inputs = {name: array for name, array in arrays.items() if name in known}
    return Placed(inputs, engines, _outputs(manifest))


def _own_sizes(
    specs: Sequence[TensorSpec], rows: Mapping[str, np.ndarray], batch_dim: Dim | None
) -> dict[str, int]:
    """Returns the sizes that rows show: the other inputs of a modality must agree with them."""
    sizes: dict[str, int] = {}
    for spec in specs:
        row = rows.get(spec.name)
        if row is not None and row.ndim:
            dims = spec.shape[1:] if has_batch(spec, batch_dim) else spec.shape
            sizes |= {d: size for d, size in zip(dims, row.shape, strict=True) if isinstance(d, str)}
    return sizes


def _load(
    folder: Path, entry: StandIn, spec: TensorSpec, value: str | float, batch_dim: Dim | None, *, whole: bool
) -> np.ndarray:
    """Returns a row; of a number a row full of it if `whole`, else the number."""
    where = f"stand-in '{entry.fill}' of '{entry.modality}'"
    dims = spec.shape[1:] if has_batch(spec, batch_dim) else spec.shape
    if not isinstance(value, str):
        try:
            return np.full([int(d) for d in dims] if whole else (), value, spec.dtype)
        except (OverflowError, ValueError, TypeError) as error:
            raise BundleError(f"{where}: {value!r:.40} is no {spec.dtype} {list(dims)}.", hint=_DAMAGED) from error
    try:
        row: np.ndarray = np.load(folder / value, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{where}: '{value}' is no array that can be read: {error}.", hint=_DAMAGED) from error
    if not isinstance(row, np.ndarray):
        raise BundleError(f"{where}: '{value}' is no .npy file.", hint=_DAMAGED)
    fits = row.dtype.name == spec.dtype and row.ndim == len(dims)
    if not fits or any(isinstance(d, int) and d != size for d, size in zip(dims, row.shape, strict=True)):
        raise BundleError(
            f"{where}: '{value}' is {row.dtype} {list(row.shape)}, '{spec.name}' takes {spec.dtype} {list(dims)}.",
            hint=_DAMAGED,
        )
    return row


_DAMAGED = "the bundle was put together wrongly; convert the model again"
