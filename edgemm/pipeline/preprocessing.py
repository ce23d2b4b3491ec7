"""The preprocessing of a recipe: read before the export, put into the graph behind it, or left to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bake.front import bake, refusal
from edgemm.bake.verify import check_baked
from edgemm.data import Blank, Source, blank_values, describe
from edgemm.data.processed import Processed
from edgemm.errors import DataError, RecipeError
from edgemm.export.request import DynamicReport, ExportResult
from edgemm.pipeline.progress import Progress
from edgemm.pipeline.splits import Splits
from edgemm.preprocess.front import InputSteps, fitted, renamed
from edgemm.preprocess.registry import files_of, parse
from edgemm.preprocess.step import Step, name_of
from edgemm.recipe import Recipe
from edgemm.recipe.schema import InputSection
from edgemm.tensors import BATCH, Dim, IOSpec, TensorSpec

FOLDER = "preprocess"
"""Folder in a bundle of the files that steps read."""

ROWS = 4
"""Samples on which baked steps are compared with the reference."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a recipe puts in front of the model.

    Attributes:
        baked: Inputs whose steps become a part of the graph.
        host: Inputs whose steps run as numpy, here and on the device.
        notes: Why steps that may be baked are not.
    """

    baked: tuple[InputSteps, ...] = ()
    host: tuple[InputSteps, ...] = ()
    notes: tuple[str, ...] = ()

    def for_model(self, source: Source | None) -> Source | None:
        """Returns samples as the model itself takes them, by the reference of every step."""
        ways = self.baked + self.host
        return Processed(source, ways) if source is not None and ways else source

    def for_graph(self, source: Source | None) -> Source | None:
        """Returns samples as the graph takes them once steps are baked."""
        return Processed(source, self.host) if source is not None and self.host else source

    def files(self) -> dict[str, bytes | Path]:
        """Returns path in the bundle -> file that a step on the host reads."""
        return {f"{FOLDER}/{p.name}": p for way in self.host for s in way.steps for p in files_of(s).values()}

    def manifest(self) -> tuple[dict[str, Any], ...]:
        """Returns what the manifest says of the steps on the host, files relative to the bundle."""
        return tuple(replace(way, steps=tuple(_shipped(s) for s in way.steps)).to_json() for way in self.host)

    def summary(self) -> dict[str, Any]:
        """Returns raw array -> how it is prepared and where, for people."""
        return {
            way.input: {"way": str(way), "by": by, "steps": [name_of(s) for s in way.steps]}
            for by, ways in (("graph", self.baked), ("host", self.host))
            for way in ways
        }


NONE = Preprocessing()


def read_preprocessing(recipe: Recipe, source: Source | None) -> Preprocessing:
    """Returns the steps of a recipe, checked against each other and against the raw samples.

    Args:
        recipe: Its section `inputs` counts.
        source: Samples with raw arrays: they tell dtype and shape where `raw` does not.

    Raises:
        RecipeError: An option that does not fit, or no word of what the raw data are.
        DataError: A step does not take what comes to it.
    """
    sections = {n: s for n, s in recipe.inputs.items() if s.preprocess is not None}
    if not sections:
        return NONE
    unknown = [s.source or n for n, s in sections.items() if s.raw is None]
    seen = _seen(source, frozenset(unknown)) if unknown else {}
    ways, notes, on_host = {}, [], set()
    for name, section in sections.items():
        raw = _raw(name, section, seen)
        way = ways[name] = InputSteps(name, raw, parse(section.preprocess))
        _ = way.made  # every step takes what the one before it gives
        why = refusal(way)
        if why is not None and section.bake:
            raise RecipeError(f"inputs.{name}.bake is true: {why}", hint=why.hint)
        if why is not None and section.bake is None:
            notes.append(f"{name}: its steps run on the host, not in the graph: {why}")
        if why is not None or section.bake is False:
            on_host.add(raw.name)
    baked = tuple(w for w in ways.values() if w.raw.name not in on_host)
    return Preprocessing(baked, tuple(w for w in ways.values() if w.raw.name in on_host), tuple(notes))


def bake_preprocessing(
    exported: ExportResult, found: Preprocessing, source: Source | None, progress: Progress
) -> ExportResult:
    """Returns the export with baked steps in front of the graph, compared with their reference on some samples.

    Args:
        exported: As the exporter left it.
        found: From `read_preprocessing` and `fix_batch`.
        source: Samples with raw arrays; None compares on random ones.
        progress: Told about every input.

    Raises:
        RecipeError: What the steps make is not what the model takes.
        ParityError: A baked step does not compute what its reference computes.
    """
    if found == NONE:
        return exported
    io = exported.graph.io
    ways = found.baked + found.host
    if io.batch is None:
        raise RecipeError(
            f"input '{ways[0].input}': the model has no batch axis, and preprocess needs one.",
            hint="export the model with a batch axis, or prepare its data before",
        )
    fitted(io, ways)
    for way in found.baked:
        rows = _rows(way, source)
        error = check_baked(way, rows)
        progress.step("preprocess", f"{way}, in the graph; differs from the reference by {error:.1e} at most")
    for way in found.host:
        progress.step("preprocess", f"{way}, on the host")
    return replace(
        exported, graph=bake(exported.graph, found.baked), dynamic=_dynamic(exported.dynamic, io, found)
    )


def fix_batch(found: Preprocessing, io: IOSpec) -> Preprocessing:
    """Returns the steps for the batch of a model."""
    if not isinstance(io.batch, int):
        return found
    return replace(found, baked=_fixed(found.baked, io.batch), host=_fixed(found.host, io.batch))


def resolve(recipe: Recipe, found: Preprocessing, io: IOSpec, splits: Splits, folder: Path) -> Recipe:
    """Returns the recipe with its inputs named and blanked as the graph has them.

    A sensor whose data go through steps gives zeros when it is silent, integers too, unless the recipe says what
    else; what steps on the host make of that is what is blank for the graph.
    """
    if found == NONE:
        return recipe
    inputs = dict(recipe.inputs)
    for way in found.baked:
        section = inputs.pop(way.input)
        known = inputs.get(way.raw.name, section)
        blank = known.blank or ("zeros" if way.raw.dtype != "str" else None)
        inputs[way.raw.name] = known.model_copy(update={"blank": blank})
    for way in found.host:
        blank = _blank_row(way, inputs[way.input], splits, recipe.data.seed, folder)
        inputs[way.input] = inputs[way.input].model_copy(update={"blank": blank})
    return recipe.model_copy(update={"inputs": inputs})


def _blank_row(way: InputSteps, section: InputSection, splits: Splits, seed: int, folder: Path) -> str | None:
    """Returns the file with what the steps make of a silent sensor."""
    samples = splits.any
    if way.raw.dtype == "str" or samples is None:
        return None
    raw_io = IOSpec((way.raw,), (), {way.raw.name: way.input}, batch=way.raw.shape[0])
    blank = Blank.parse(section.blank or "zeros")
    values = blank_values(raw_io, samples, {way.raw.name: blank}, seed)
    row = way.row(values.row(way.raw.name, samples[0][way.raw.name], 0))
    file = folder / f"blank-{way.input.replace('/', '_')}.npy"
    np.save(file, row)
    return str(file)


def _seen(source: Source | None, wanted: frozenset[str]) -> Mapping[str, TensorSpec]:
    """Returns the raw arrays that samples show; a size that changes from sample to sample is symbolic."""
    if source is None:
        return {}
    result = {}
    for name, info in describe(_Only(source, wanted & frozenset(source.names))).items():
        dims: list[Dim] = [
            small if small == large else f"{name}_{axis}"
            for axis, (small, large) in enumerate(zip(info.smallest, info.largest, strict=True), start=1)
        ]
        dtype = "str" if info.dtype.startswith("str") else info.dtype
        result[name] = TensorSpec(name, dtype, (BATCH, *dims))
    return result


@dataclass(frozen=True, slots=True)
class _Only:
    """Some of the arrays of a source."""

    source: Source
    names: frozenset[str] = field(default=frozenset())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        sample = self.source[index]
        return {name: np.asarray(sample[name]) for name in sorted(self.names) if name in sample}


def _raw(name: str, section: InputSection, seen: Mapping[str, TensorSpec]) -> TensorSpec:
    source = section.source or name
    if section.raw is not None:
        return TensorSpec(source, section.raw.dtype, (BATCH, *section.raw.shape))
    if source not in seen:
        arrays = f" (arrays: {', '.join(seen)})" if seen else ""
        raise RecipeError(
            f"inputs.{name}.preprocess: no samples show what the raw array '{source}' is{arrays}.",
            hint=f"give inputs.{name}.raw: {{dtype: uint8, shape: [480, 640, 3]}}, or samples (data.calib)",
        )
    return seen[source]


def _fixed(ways: tuple[InputSteps, ...], batch: int) -> tuple[InputSteps, ...]:
    return tuple(replace(w, raw=replace(w.raw, shape=(batch, *w.raw.shape[1:]))) for w in ways)


def _rows(way: InputSteps, source: Source | None) -> np.ndarray | None:
    """Returns a few raw rows of one shape, or None."""
    if source is None or way.raw.name not in source.names:
        return None
    rows = [np.asarray(source[i][way.raw.name]) for i in range(min(len(source), ROWS))]
    rows = [row for row in rows if row.shape == rows[0].shape]
    wrong = rows[0].dtype.name != way.raw.dtype
    if wrong:
        raise DataError(
            f"{source.origin}: array '{way.raw.name}' is {rows[0].dtype.name}, `raw` says {way.raw.dtype}.",
            hint=f"samples hold raw data: correct inputs.{way.input}.raw, or the samples",
        )
    return np.stack(rows)


def _dynamic(report: DynamicReport, io: IOSpec, found: Preprocessing) -> DynamicReport:
    """Returns what is said of open sizes, of what the graph takes now."""
    baked = {way.input for way in found.baked}
    taken = {i.name: i for i in renamed(io, found.baked).inputs}
    names = {way.input: way.raw.name for way in found.baked}
    dynamic = tuple(
        replace(d, tensor=names.get(d.tensor, d.tensor))
        for d in report.dynamic
        if d.tensor not in baked or d.axis == 0
    )
    kept = tuple(d for d in dynamic if d.tensor in taken)
    return replace(
        report,
        dynamic=tuple(dict.fromkeys(kept)),
        fixed=tuple(f for f in report.fixed if f.tensor not in baked),
        single=tuple(f for f in report.single if f.tensor not in baked),
    )


def _shipped(step: Step) -> Step:
    names = {option: Path(FOLDER) / file.name for option, file in files_of(step).items()}
    return replace(step, **names) if names else step  # type: ignore[type-var]
