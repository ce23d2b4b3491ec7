"""The preprocessing of a recipe: read before the export, put into the graph behind it, or left to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from edgemm.backends.targets import find_targets
from edgemm.bake.front import bake, refusal
from edgemm.bake.verify import OPSET, check_baked, fitting_rows
from edgemm.bundle import Manifest
from edgemm.data import Blank, Source, blank_values, describe
from edgemm.data.processed import Processed
from edgemm.errors import DataError, EdgemmError, RecipeError
from edgemm.export.request import DynamicDim, DynamicReport, ExportResult
from edgemm.pipeline.progress import Progress
from edgemm.preprocess.front import InputSteps, fitted, least_sizes, named, unnamed_size
from edgemm.preprocess.registry import files_of, parse, to_json
from edgemm.preprocess.step import Step, blank_of
from edgemm.recipe import Recipe
from edgemm.recipe.schema import InputSection
from edgemm.tensors import BATCH, Dim, IOSpec, TensorSpec

FOLDER = "preprocess"
"""Folder in a bundle of the files that steps read."""

_NOT_IN_TENSORRT = ("int16", "uint16", "uint32", "uint64")
"""What sensors give and TensorRT has no tensors of."""

ROWS = 4
"""Samples on which baked steps are compared with the reference."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a recipe puts in front of the model.

    Attributes:
        baked: Inputs whose steps become a part of the graph.
        host: Inputs whose steps run as numpy, here and on the device.
        notes: Why steps that may be baked are not.
        demanded: Inputs whose recipe says `bake: true`.
    """

    baked: tuple[InputSteps, ...] = ()
    host: tuple[InputSteps, ...] = ()
    notes: tuple[str, ...] = ()
    demanded: frozenset[str] = frozenset()

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

    def resolved(self, recipe: Recipe, source: Source | None, folder: Path) -> Recipe:
        """Returns the recipe with its inputs named and blanked as the graph has them.

        A sensor whose data go through steps gives zeros when it is silent, integers too, unless the recipe says
        what else; what steps on the host make of that is what is blank for the graph.
        """
        inputs = dict(recipe.inputs)
        for way in self.baked:
            section = inputs.pop(way.input)
            known = inputs.get(way.raw.name, section)
            inputs[way.raw.name] = known.model_copy(update={"blank": known.blank or blank_of(way.steps)})
        for way in self.host:
            blank = _blank_row(way, inputs[way.input], source, recipe.data.seed, folder)
            inputs[way.input] = inputs[way.input].model_copy(update={"blank": blank})
        return recipe.model_copy(update={"inputs": inputs})

    def hint(self, error: EdgemmError) -> str:
        """Returns the hint of an error of the model with its samples, with what the steps make of these."""
        ways = "; ".join(map(str, (*self.baked, *self.host)))
        return f"{error.hint}; preprocess: {ways}" if ways else error.hint

    def described(self, manifest: Manifest) -> Manifest:
        """Returns the manifest with the steps on the host, and what people read about all of them."""
        told = {
            way.input: {"way": str(way), "by": by, "steps": to_json(shipped(way.steps))}
            for by, ways in (("graph", self.baked), ("host", self.host))
            for way in ways
        }
        host = tuple(replace(way, steps=shipped(way.steps)).to_json() for way in self.host)
        info = {**manifest.info, "preprocess": told} if told else manifest.info
        return replace(manifest, preprocess=host, info=info, least=least_sizes(self.baked))


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
        why = refusal(way) or _unknown_to_tensorrt(way, recipe)
        if why is not None and section.bake:
            raise RecipeError(f"inputs.{name}.bake is true: {why}", hint=why.hint)
        if why is not None and section.bake is None:
            notes.append(f"{name}: its steps run on the host, not in the graph: {why}")
        if why is not None or section.bake is False:
            on_host.add(raw.name)
    _check_files(ways)
    baked = tuple(w for w in ways.values() if w.raw.name not in on_host)
    demanded = frozenset(name for name, section in sections.items() if section.bake)
    return Preprocessing(baked, tuple(w for w in ways.values() if w.raw.name in on_host), tuple(notes), demanded)


def _check_files(ways: Mapping[str, InputSteps]) -> None:
    """Checks that no two files that steps read would be one in the bundle.

    Raises:
        RecipeError: They have one name and differ.
    """
    seen: dict[str, Path] = {}
    for name, way in ways.items():
        for file in (f for step in way.steps for f in files_of(step).values()):
            other = seen.setdefault(file.name, file)
            if other != file and file.is_file() and other.is_file() and file.read_bytes() != other.read_bytes():
                raise RecipeError(
                    f"inputs.{name}.preprocess: '{file}' and '{other}' would be one file in the bundle.",
                    hint="give one of them another name",
                )


def _unknown_to_tensorrt(way: InputSteps, recipe: Recipe) -> DataError | None:
    """Returns why a graph with this raw array cannot be built for one of the targets; None if it can."""
    if way.raw.dtype not in _NOT_IN_TENSORRT:
        return None
    names = [t.name for t in find_targets(recipe.target) if t.module is not None]
    if not names:
        return None
    return DataError(
        f"input '{way.raw.name}': TensorRT takes no {way.raw.dtype}, and {names[0]} is a target.",
        hint=f"feed int32: `raw: {{dtype: int32, ...}}`, for sound with `pcm: {{bits: {way.raw.dtype[-2:]}}}`",
    )


def bake_preprocessing(
    exported: ExportResult, found: Preprocessing, source: Source | None, progress: Progress
) -> tuple[ExportResult, Preprocessing]:
    """Returns the export with baked steps in front of the graph, and the steps with the batch of the model.

    Args:
        exported: As the exporter left it.
        found: From `read_preprocessing`.
        source: Samples with raw arrays, on some of which the nodes are compared with the reference; None takes
            random ones.
        progress: Told about every input.

    Raises:
        RecipeError: What the steps make is not what the model takes.
        ParityError: A baked step does not compute what its reference computes.
    """
    if found == NONE:
        return exported, found
    io = exported.graph.io
    found = _for_opset(_with_batch(found, io), exported.graph.model.opset_imports.get("", 0))
    fitted(io, found.baked + found.host)
    found = replace(found, baked=named(io, found.baked), host=named(io, found.host))
    for way in found.baked:
        error = check_baked(way, _rows(way, source))
        progress.step("preprocess", f"{way}, in the graph; off the reference by {error:.1e} of the largest value")
    for way in found.host:
        progress.step("preprocess", f"{way}, on the host")
    graph = bake(exported.graph, found.baked)
    dynamic = _dynamic(exported.dynamic, found.baked)
    opened = _open_sizes(found.baked + found.host, source)
    return replace(exported, graph=graph, dynamic=replace(dynamic, dynamic=(*dynamic.dynamic, *opened))), found


def _for_opset(found: Preprocessing, opset: int) -> Preprocessing:
    """Returns the steps, on the host if the operators of the graph are older than those that they become."""
    if opset >= OPSET or not found.baked:
        return found
    names = ", ".join(way.input for way in found.baked)
    why = f"{names}: the graph has opset {opset}, baked steps need {OPSET} or later"
    if any(way.input in found.demanded for way in found.baked):
        raise RecipeError(f"{why}.", hint="export the model with a newer opset, or set bake to false")
    host = (*found.host, *found.baked)
    return replace(found, baked=(), host=host, notes=(*found.notes, f"{why}: its steps run on the host"))


def _with_batch(found: Preprocessing, io: IOSpec) -> Preprocessing:
    if io.batch == BATCH:
        return found
    batch = io.batch
    if not isinstance(batch, int):
        name = (found.baked + found.host)[0].input
        raise RecipeError(
            f"input '{name}': the model has no batch axis, and preprocess needs one.",
            hint="export the model with a batch axis, or prepare its data before",
        )

    def fixed(ways: tuple[InputSteps, ...]) -> tuple[InputSteps, ...]:
        return tuple(replace(w, raw=replace(w.raw, shape=(batch, *w.raw.shape[1:]))) for w in ways)

    return replace(found, baked=fixed(found.baked), host=fixed(found.host))


def _blank_row(
    way: InputSteps, section: InputSection, samples: Source | None, seed: int, folder: Path
) -> str | None:
    """Returns the file with what the steps make of a silent sensor."""
    if way.raw.dtype == "str" or samples is None:
        return None
    raw_io = IOSpec((way.raw,), (), {way.raw.name: way.input}, batch=way.raw.shape[0])
    blank = Blank.parse(section.blank or blank_of(way.steps))
    values = blank_values(raw_io, samples, {way.raw.name: blank}, seed)
    row = way.row(values.row(way.raw.name, samples[0][way.raw.name], 0))
    file = folder / f"blank-{quote(way.input, safe='')}.npy"
    np.save(file, row)
    return str(file)


def _seen(source: Source | None, wanted: frozenset[str]) -> Mapping[str, TensorSpec]:
    """Returns the raw arrays that samples show; a size that changes from sample to sample is symbolic."""
    if source is None:
        return {}
    result = {}
    for name, info in describe(_Only(source, wanted & frozenset(source.names))).items():
        dims: list[Dim] = [
            small if small == large else unnamed_size(name, axis)
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


def _rows(way: InputSteps, source: Source | None) -> np.ndarray | None:
    """Returns a few raw rows of one shape, or None."""
    if source is None or way.raw.name not in source.names:
        return None
    rows = [np.asarray(source[i][way.raw.name]) for i in range(min(len(source), ROWS))]
    rows = [row for row in rows if row.shape == rows[0].shape]
    return np.stack(rows)


def _open_sizes(ways: tuple[InputSteps, ...], source: Source | None) -> tuple[DynamicDim, ...]:
    """Returns the open sizes of raw arrays, with one that the steps are known to take."""
    result = {}
    for way in ways:
        opened = [(axis, dim) for axis, dim in enumerate(way.raw.shape) if axis and isinstance(dim, str)]
        if opened:
            rows = _rows(way, source)
            rows = fitting_rows(way) if rows is None else rows
            for axis, dim in opened:
                result[way.raw.name, axis] = DynamicDim(way.raw.name, axis, dim, (rows.shape[axis],))
    return tuple(result.values())


def _dynamic(report: DynamicReport, baked: tuple[InputSteps, ...]) -> DynamicReport:
    """Returns what is said of open sizes without those that an app does not see any more."""
    names = {way.input: way.raw.name for way in baked}
    dynamic = [d for d in report.dynamic if d.tensor not in names or d.axis == 0]
    return replace(
        report,
        dynamic=tuple(dict.fromkeys(replace(d, tensor=names.get(d.tensor, d.tensor)) for d in dynamic)),
        fixed=tuple(f for f in report.fixed if f.tensor not in names),
        single=tuple(f for f in report.single if f.tensor not in names),
    )


def shipped(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Returns the steps with the files that they read where they are in a bundle."""

    def moved(step: Any) -> Step:
        names = {option: Path(FOLDER) / file.name for option, file in files_of(step).items()}
        result: Step = replace(step, **names) if names else step
        return result

    return tuple(map(moved, steps))
