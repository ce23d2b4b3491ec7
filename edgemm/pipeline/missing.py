"""What a bundle holds for modalities that have no sample on the device: blanks, and means behind the encoders.

Means are those of the encoder that ships, since repairs of a plan may move factors between encoder and head. They
are summed up in constant memory over a part of the calibration samples.
"""

from __future__ import annotations

import io as files_io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bundle import HeadEntry, StandIn, Variant
from edgemm.data import BlankValues, Samples, thinned
from edgemm.data.blanks import ZEROS
from edgemm.partition import Stage, StageGraph
from edgemm.pipeline.silence import Silence
from edgemm.quant.chain import OpenStage, fed, feeds
from edgemm.recipe import Recipe
from edgemm.runtime.registry import session_class
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.stand_ins import has_batch
from edgemm.runtime.stream_policy import inputs_of
from edgemm.tensors import IOSpec, TensorSpec

LEARNED = "learned"
"""The fill that is trained."""

MEAN_SAMPLES = 256
"""Most calibration samples, spread evenly, that a mean is taken over."""

Rows = Mapping[str, np.ndarray]
"""Tensor -> one row, or a number without axes."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where one modality enters what it shares with others.

    Attributes:
        modality: Its name.
        encoder: Its own stage, None without one.
        given: What that gives, states apart.
        direct: Inputs of it that other stages read.
    """

    modality: str
    encoder: Stage | None
    given: tuple[TensorSpec, ...]
    direct: tuple[TensorSpec, ...]

    def obstacle(self, io: IOSpec, blank: frozenset[str]) -> str | None:
        """Returns why no mean can stand for the modality there, else None.

        Args:
            io: Of the model.
            blank: Its inputs that something is known to be blank of.
        """
        other_sizes = {d for i in io.feed_inputs if io.modalities[i.name] != self.modality for d in i.shape}
        for spec in (*self.given, *self.direct):
            if not spec.dtype.startswith("float") and spec.name not in blank:
                what = "is an input of the fusion head" if spec in self.direct else "comes from its encoder"
                return f"'{spec.name}' ({spec.dtype}) {what}, and has no mean"
            dims = spec.shape[1:] if has_batch(spec, io.batch) else spec.shape
            if shared := sorted(d for d in dims if isinstance(d, str) and d in other_sizes):
                return f"'{spec.name}' has the size '{shared[0]}', which other modalities give"
        return None


@dataclass(slots=True)
class Gaps:
    """What goes into the bundle.

    Attributes:
        stand_ins: As the manifest lists them.
        files: Path in the bundle -> bytes.
        rows: (variant, modality, fill) -> tensor -> row; the variant is empty where it does not matter.
        notes: What people should know.
        heads: As the manifest lists them.
    """

    stand_ins: list[StandIn] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    rows: dict[tuple[str, str, str], Rows] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    heads: list[HeadEntry] = field(default_factory=list)

    def add(self, modality: str, fill: str, rows: Rows, variant: str = "") -> None:
        """Adds a stand-in: numbers to the manifest, rows as files."""
        arrays: dict[str, str | float] = {}
        folder = f"missing/{variant or 'blank'}"
        for name, row in rows.items():
            if row.ndim == 0:
                arrays[name] = row.item()
                continue
            stem, number = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{modality}-{fill}"), 0
            while (path := f"{folder}/{stem}-{number}.npy") in self.files:
                number += 1
            self.files[path] = _npy(row)
            arrays[name] = path
        self.rows[variant, modality, fill] = rows
        self.stand_ins.append(StandIn(modality, fill, arrays, variant))

    def of(self, variant: str) -> dict[tuple[str, str], Rows]:
        """Returns (modality, fill) -> rows of what fits a variant."""
        return {(m, fill): rows for (v, m, fill), rows in self.rows.items() if v in ("", variant)}


def kept_policy(recipe: Recipe, gaps: Gaps) -> dict[str, Any]:
    """Returns the policy for the bundle: `mean` in place of a trained value that a variant lacks; says so."""
    policy = recipe.stream.given()
    optional = dict(recipe.stream.optional or {})
    for modality in [m for m, fill in optional.items() if fill == LEARNED]:
        variants = [v for v, m, fill in gaps.rows if (m, fill) == (modality, "mean")]
        lacking = [v for v in variants if (v, modality, LEARNED) not in gaps.rows]
        if lacking:
            optional[modality] = "mean"
            gaps.notes.append(
                f"streams fill '{modality}' with 'mean', not with 'learned': "
                f"{', '.join(lacking)} has no trained value"
            )
    return policy | ({"optional": optional} if optional else {})


def find_cuts(stages: StageGraph, io: IOSpec) -> dict[str, Cut]:
    """Returns modality -> where it enters what it shares with others."""
    states = {s.output for s in io.states}
    cuts = {}
    for modality in io.modality_names():
        own = [s for s in stages.stages if s.modalities == (modality,)]
        others = {i.name for s in stages.stages if s not in own for i in s.inputs}
        given = tuple(o for s in own for o in s.outputs if o.name not in states)
        direct = tuple(i for i in inputs_of(io, modality) if i.name in others)
        cuts[modality] = Cut(modality, own[0] if own else None, given, direct)
    return cuts


def add_blanks(gaps: Gaps, silence: Silence) -> None:
    """Adds what a silent sensor gives, for each modality all of whose inputs something is known of."""
    io, samples = silence.io, silence.calibration
    for modality in io.modality_names():
        rows: dict[str, np.ndarray] = {}
        for spec in inputs_of(io, modality):
            row = _blank_row(silence.values, spec, io, samples)
            if row is not None:
                rows[spec.name] = row
        if len(rows) == len(inputs_of(io, modality)):
            gaps.add(modality, "blank", rows)


def add_means(
    gaps: Gaps,
    cuts: Mapping[str, Cut],
    encoders: Encoders,
    silence: Silence,
    variant: str,
    tell: Callable[[], None],
) -> None:
    """Adds the mean of what the encoders of one variant give.

    Args:
        gaps: What goes into the bundle; blanks are there already.
        cuts: Where each modality enters.
        encoders: Of the variant.
        silence: The calibration samples.
        variant: Its name.
        tell: Called before each modality.
    """
    io = silence.io
    samples = silence.calibration
    few = samples if io.states else thinned(samples, MEAN_SAMPLES)
    for modality, cut in cuts.items():
        tell()
        blank = gaps.rows.get(("", modality, "blank"), {})
        integers = frozenset(i.name for i in cut.direct if not i.dtype.startswith("float"))
        declared = frozenset(integers & blank.keys())
        wanted = [s for s in (*cut.given, *cut.direct) if s.name not in declared]
        if cut.obstacle(io, declared) is not None or not wanted or not encoders.has(cut):
            continue
        means = _means(encoders.rows(cut, few), wanted)
        if isinstance(means, str):
            gaps.notes.append(f"no mean stands for '{modality}' ({variant}): {means}")
            continue
        gaps.add(modality, "mean", {**means, **{n: blank[n] for n in sorted(declared)}}, variant)


class Encoders:
    """The encoders of one variant, opened one at a time on a few samples."""

    def __init__(
        self, io: IOSpec, variant: Variant, files: Mapping[str, Path], options: SessionOptions, batch: int
    ) -> None:
        """Takes the engines of `variant` from `files`, path in the bundle -> file.

        An encoder for a GPU is run in float on the CPU.
        """
        self._io = io
        self._files = files
        self._options = options
        self._batch = batch
        alone = [e for e in variant.engines if len(e.stages) == 1]
        self._alone = frozenset(e.stages[0] for e in alone)
        self._entries = {e.stages[0]: e for e in alone if "module" not in e.options}

    def has(self, cut: Cut) -> bool:
        """Returns whether something can go in behind the encoder: it is an engine of its own, or there is none."""
        return cut.encoder is None or cut.encoder.name in self._alone

    def rows(self, cut: Cut, samples: Samples) -> Iterator[dict[str, np.ndarray]]:
        """Yields tensor -> [samples, ...] of what a modality gives at its cut, for a few samples at a time.

        Raises:
            BackendError: The encoder does not open or run.
        """
        with self._open(cut.encoder) as run:
            kept: dict[str, np.ndarray] = {}
            for rows, feed in feeds(self._io, samples, self._batch):
                values = dict(feed)
                if run is not None:
                    values |= {n: v for n, v in self._states(kept, fed(feed, self._io)).items() if n not in feed}
                    run(values)
                    kept = {s.input: values[s.output] for s in self._io.states if s.output in values}
                yield {
                    spec.name: values[spec.name][: len(rows)]
                    if has_batch(spec, self._io.batch)
                    else values[spec.name][None]
                    for spec in (*cut.given, *cut.direct)
                }

    @contextmanager
    def _open(self, encoder: Stage | None) -> Iterator[Callable[[dict[str, np.ndarray]], None] | None]:
        if encoder is None:
            yield None
            return
        entry = self._entries.get(encoder.name)
        if entry is None:
            stage = OpenStage.open(encoder.name, encoder.model)

            def run_float(values: dict[str, np.ndarray]) -> None:
                for _ in stage.run(values):
                    pass

            yield run_float
            return
        engine = session_class(entry.backend)(self._files[entry.file], self._options.for_engine(entry.options))
        names = [o.name for o in engine.outputs]
        inputs = [i.name for i in engine.inputs]

        def run(values: dict[str, np.ndarray]) -> None:
            given = {n: np.ascontiguousarray(values[n]) for n in inputs}
            values.update(zip(names, engine.run(given), strict=True))

        try:
            yield run
        finally:
            engine.close()

    def _states(self, kept: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        states = {}
        for state in self._io.states:
            spec = self._io.input(state.input)
            shape = [d if isinstance(d, int) else count if d == self._io.batch else 0 for d in spec.shape]
            states[spec.name] = kept.get(spec.name, np.zeros(shape, spec.dtype))
        return states


def _means(batches: Iterator[dict[str, np.ndarray]], specs: Sequence[TensorSpec]) -> dict[str, np.ndarray] | str:
    """Returns the mean row of each tensor, or why there is none."""
    sums: dict[str, np.ndarray] = {}
    count = 0
    for values in batches:
        for spec in specs:
            rows = np.asarray(values[spec.name], np.float64)
            total = sums.setdefault(spec.name, np.zeros(rows.shape[1:]))
            if total.shape != rows.shape[1:]:
                return f"'{spec.name}' differs in size from sample to sample"
            total += rows.sum(axis=0)
        count += len(rows)
    means = {spec.name: (sums[spec.name] / count).astype(spec.dtype) for spec in specs}
    infinite = [name for name, row in means.items() if not np.isfinite(row).all()]
    return f"'{infinite[0]}' is not finite" if infinite else means


def _blank_row(values: BlankValues, spec: TensorSpec, io: IOSpec, samples: Samples | None) -> np.ndarray | None:
    """Returns a blank row, a number where all of it is one, or None where nothing is known."""
    if spec.name not in values.inputs.get(io.modalities[spec.name], frozenset()):
        return None
    blank = values.blanks.get(spec.name, ZEROS)
    if blank.kind in ("zeros", "constant"):
        return np.array(blank.value if blank.kind == "constant" else 0, spec.dtype)
    known = values.arrays.get(spec.name)
    if known is not None and known.ndim == 0:
        return known.astype(spec.dtype)
    if samples is None or not len(samples):
        return None
    row = np.asarray(samples[0][spec.name])
    if has_batch(spec, io.batch) and row.ndim == len(spec.shape):
        row = row[0]
    return values.row(spec.name, row, 0)


def _npy(row: np.ndarray) -> bytes:
    out = files_io.BytesIO()
    np.save(out, np.ascontiguousarray(row), allow_pickle=False)
    return out.getvalue()
