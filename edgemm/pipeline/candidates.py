"""Variants that may ship: built and opened in a temporary folder, run by the runtime that ships.

`convert` builds a few candidates, measures them against each other, and writes one of them into the bundle. In the
temporary folder the weights of the model lie in one file that every graph and session maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgemm.backends.registry import get_backend
from edgemm.bundle import EngineEntry, Manifest, Variant
from edgemm.data import checked_sizes
from edgemm.graph import ExportedGraph, let_go, load, move_weights, remove_mapped, room_in
from edgemm.memory import give_back_memory
from edgemm.partition import Stage, StageGraph
from edgemm.pipeline.engines import EngineKind
from edgemm.quant.apply import apply_plan
from edgemm.quant.fold import with_weights
from edgemm.quant.plan import FLOAT, INT8, QuantPlan
from edgemm.quant.tensors import table_key
from edgemm.rewrite.prepare import prepare
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.opening import open_variant

if TYPE_CHECKING:
    import numpy as np

    from edgemm.quant.table import CalibrationTable

TARGET = "cpu"

WHOLE = "whole"
"""Name of the only engine of a `whole` layout."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant with its engines: path in the bundle -> draft in the folder of the workbench."""

    variant: Variant
    files: Mapping[str, Path]

    def renamed(self, name: str) -> Candidate:
        """Returns this candidate under its name in the bundle, files included."""
        old = self.variant.name

        def path(file: str) -> str:
            return file.replace(f"engines/{old}/", f"engines/{name}/", 1)

        engines = tuple(replace(e, file=path(e.file)) for e in self.variant.engines)
        variant = replace(self.variant, name=name, engines=engines)
        return Candidate(variant, {path(file): draft for file, draft in self.files.items()})


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is cut into engines: `stages` are the graphs, `covers` the model's stages in each."""

    name: str
    stages: tuple[Stage, ...]
    covers: tuple[tuple[str, ...], ...]

    def graph_of(self, stage: str) -> Stage:
        """Returns the graph that covers one of the model's stages."""
        return next(g for g, covers in zip(self.stages, self.covers, strict=True) if stage in covers)

    def covered_by(self, graph: str) -> tuple[str, ...]:
        """Returns the model's stages in one graph."""
        return next(covers for g, covers in zip(self.stages, self.covers, strict=True) if g.name == graph)


def staged(graph: StageGraph) -> Layout:
    """Returns the layout of one engine per stage."""
    return Layout("staged", graph.stages, tuple((s.name,) for s in graph.stages))


def whole(exported: ExportedGraph, graph: StageGraph) -> Layout:
    """Returns the layout of one engine for everything in `exported`; `graph` names the stages that it covers."""
    stage = Stage(
        name=WHOLE,
        modalities=exported.io.modality_names(),
        role="whole",
        inputs=exported.io.inputs,
        outputs=exported.io.outputs,
        model=exported.model,
        nodes=len(exported.model.graph),
        parameters=sum(s.parameters for s in graph.stages),
    )
    return Layout("whole", (stage,), (tuple(s.name for s in graph.stages),))


_numbers = itertools.count()
"""A draft is never overwritten: a session may have it mapped."""

Models = Callable[[Stage], tuple[ir.Model, Mapping[str, int]]]
"""The graph to ship for a stage, with its number of nodes per precision."""


def float_models(stage: Stage) -> tuple[ir.Model, Mapping[str, int]]:
    """Returns the stage as it is."""
    return stage.model, {FLOAT: stage.nodes}


def planned_models(
    plan: QuantPlan, table: CalibrationTable, layout: Layout, weights: Mapping[str, np.ndarray] | None = None
) -> Models:
    """Returns what applies `plan` to a stage, with new arrays for its `weights`."""
    if layout.name == WHOLE:
        plan, table = as_whole(plan, table)

    def apply(stage: Stage) -> tuple[ir.Model, Mapping[str, int]]:
        stage = replace(stage, model=with_weights(stage.model, weights or {}))
        counts: dict[str, int] = {}
        for decision in plan.stage(stage.name):
            if decision.precision != FLOAT:
                counts[decision.precision] = counts.get(decision.precision, 0) + 1
        if not counts:
            return float_models(stage)
        model = apply_plan(stage, plan, table)
        return model, counts | {FLOAT: stage.nodes - sum(counts.values())}

    return apply


def as_whole(plan: QuantPlan, table: CalibrationTable) -> tuple[QuantPlan, CalibrationTable]:
    """Returns the same decisions and ranges for the graph in one piece, whose names are those of its stages."""
    decisions = tuple(replace(d, stage=WHOLE) for d in plan.decisions)
    ranges = {table_key(WHOLE, key.partition(":")[2]): value for key, value in table.ranges.items()}
    return replace(plan, decisions=decisions), replace(table, ranges=ranges)


def build(
    name: str,
    layout: Layout,
    models: Models,
    kinds: Sequence[EngineKind],
    folder: Path,
    *,
    raw: bool = False,
) -> Candidate:
    """Returns the built candidate.

    Args:
        name: Of the variant.
        layout: The graphs.
        models: Gives the graph to ship for each.
        kinds: What runs each.
        folder: For drafts of the engines.
        raw: Leave the graph as it is, without what its backend would have it prepared with.

    Raises:
        BackendError: A backend cannot write a graph as an engine, or there is no room for it.
    """
    entries: list[EngineEntry] = []
    files: dict[str, Path] = {}
    size = 0
    total: dict[str, int] = {}
    for stage, covers, kind in zip(layout.stages, layout.covers, kinds, strict=True):
        model, decisions = models(stage)
        backend = get_backend(kind.backend)
        path = f"engines/{name}/{stage.name}{backend.suffix}"
        files[path] = folder / f"{name}-{stage.name}-{next(_numbers)}{backend.suffix}"
        size += backend.draft(model if raw else prepare(model, kind.preparation), files[path])
        del model
        let_go(stage.model)
        give_back_memory(4 * stage.parameters)
        entries.append(
            EngineEntry(
                name=stage.name,
                stages=covers,
                file=path,
                inputs=tuple(i.name for i in stage.inputs),
                outputs=tuple(o.name for o in stage.outputs),
                decisions=decisions,
                backend=kind.backend,
                options=kind.options,
            )
        )
        for precision, count in decisions.items():
            total[precision] = total.get(precision, 0) + count
    variant = Variant(
        name=name,
        target=TARGET,
        backend="+".join(sorted({k.backend for k in kinds})),
        precision=_precision(total, kinds),
        layout=layout.name,
        engines=tuple(entries),
        decisions=total,
        size_bytes=size,
    )
    return Candidate(variant, files)


def _precision(decisions: Mapping[str, int], kinds: Sequence[EngineKind]) -> str:
    """Returns one word for a variant: int8 (or int4), else bf16, else fp32."""
    integer = [p for p in decisions if p != FLOAT]
    if integer:
        return INT8 if any(p.startswith("int8") for p in integer) else "int4"
    return FLOAT if all(k.exact for k in kinds) else "bf16"


class Workbench:
    """Opens candidates from a temporary folder with the session that will run them on the device."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        self.folder = folder
        self.threads = threads
        self.io = manifest.io
        self.sizes = checked_sizes(manifest.info["dynamic"])
        self._manifest = manifest
        self._open: list[FusionSession] = []

    def settle(self, models: Sequence[ir.Model]) -> None:
        """Moves the weights of graphs into one file in the folder, where every draft and session maps them.

        Raises:
            BackendError: There is no room in the folder.
        """
        with room_in(self.folder, "the weights of the model"):
            move_weights(models, self.folder)

    def open(self, candidate: Candidate) -> FusionSession:
        """Returns a session over `candidate`; it is closed with the workbench.

        Raises:
            BackendError: An engine does not open.
        """
        drafts = candidate.files
        engines = tuple(replace(e, file=drafts[e.file].name) for e in candidate.variant.engines)
        variant = replace(candidate.variant, engines=engines)
        session = open_variant(self.folder, self._manifest, variant, self.threads)
        self._open.append(session)
        return session

    def close_one(self, session: FusionSession) -> None:
        """Closes one session; its drafts stay."""
        session.close()
        self._open.remove(session)

    def discard(self, session: FusionSession, candidate: Candidate) -> None:
        """Closes one session and removes its drafts."""
        self.close_one(session)
        for draft in candidate.files.values():
            remove_mapped(draft)

    def close(self) -> None:
        """Closes every session that was opened."""
        for session in self._open:
            session.close()
        self._open = []

    def finish(
        self, variants: Sequence[Variant], files: Mapping[str, bytes | Path]
    ) -> tuple[tuple[Variant, ...], dict[str, bytes | Path]]:
        """Returns the variants and files of a bundle: engines are built from drafts and loaded once as they ship.

        Raises:
            BackendError: An engine does not load, or there is no room for it in the temporary folder.
        """
        finished = dict(files)
        engines = [e for v in variants for e in v.engines if "module" not in e.options]  # those ship as they are
        backends = {engine.file: get_backend(engine.backend) for engine in engines}
        for number, (path, backend) in enumerate(backends.items()):
            draft = files[path]
            assert isinstance(draft, Path)
            if draft.suffix == ".onnx":
                file = self.folder / f"shipped-{number}{backend.suffix}"
                finished[path] = backend.build(load(draft), TARGET, file).file
                give_back_memory()

        def size(variant: Variant) -> int:
            paths = (finished[e.file] for e in variant.engines)
            return sum(p.stat().st_size if isinstance(p, Path) else len(p) for p in paths)

        return tuple(replace(v, size_bytes=size(v)) for v in variants), finished
