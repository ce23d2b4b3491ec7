"""From a plan to what a bundle holds for TensorRT: planned graphs, what the lint says of them, built engines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgemm import graph as graphs
from edgemm.backends._trt.request import PRECISIONS
from edgemm.backends.targets import Target
from edgemm.backends.tensorrt import (
    BuildRequest,
    OptimizationProfile,
    Progress,
    Sidecar,
    Supervision,
    build_engine,
    sidecar_file,
)
from edgemm.bundle import EngineEntry, Variant
from edgemm.errors import EdgemmError
from edgemm.lint import ERROR, SEVERITIES, WARNING, Finding, lint
from edgemm.memory import give_back_memory
from edgemm.partition import Stage
from edgemm.pipeline.candidates import WHOLE, Layout, as_whole
from edgemm.pipeline.engines import NVIDIA
from edgemm.pipeline.shapes import Shapes
from edgemm.pipeline.tensorrt_plans import TrtProposal
from edgemm.quant.plan import FLOAT
from edgemm.quant.tensorrt.apply import apply_tensorrt
from edgemm.quant.tensorrt.rehearse import rehearse
from edgemm.runtime._trt.engines import engine_key, engine_path

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class PlannedGraph:
    """One graph of a variant as a file, precision inside.

    Attributes:
        stage: The float graph.
        covers: The model's stages in it.
        file: The ONNX file, with its weights.
        decisions: Precision -> nodes.
        precisions: Keys of `PRECISIONS` that its tensors have, sorted.
        profiles: Shapes that an engine of it accepts.
    """

    stage: Stage
    covers: tuple[str, ...]
    file: Path
    decisions: Mapping[str, int]
    precisions: tuple[str, ...]
    profiles: tuple[OptimizationProfile, ...]

    def check(self, target: Target) -> tuple[Finding, ...]:
        """Returns what the lint finds."""
        profiles = tuple(p.shapes for p in self.profiles) if target.builder is not None else None
        return lint(graphs.load(self.file), target, profiles)


def write_graphs(
    proposal: TrtProposal, layout: Layout, shapes: Shapes | None, folder: Path
) -> tuple[PlannedGraph, ...]:
    """Returns the graphs of a plan, written to `folder`; without `shapes` they accept every size.

    Raises:
        QuantizationError: The plan does not fit the graphs.
        RecipeError: A size of a graph has no range.
        BackendError: There is no room for them.
    """
    plan, table = proposal.plan, proposal.table
    if plan is not None and table is not None and layout.name == WHOLE:
        plan, table = as_whole(plan, table)
    result = []
    for stage, covers in zip(layout.stages, layout.covers, strict=True):
        model, decisions = stage.model, {FLOAT: stage.nodes}
        if plan is not None and table is not None:
            model = apply_tensorrt(stage, plan, table)
            decisions = _counts(stage, [d.precision for d in plan.stage(stage.name)])
        file = folder / f"tensorrt-{next(_numbers)}.onnx"
        with graphs.room_in(folder, f"the graph of '{stage.name}'"), file.open("wb") as stream:
            graphs.write(model, stream)
        profiles = shapes.profiles(stage) if shapes is not None else ()
        result.append(PlannedGraph(stage, covers, file, decisions, _precisions(model), profiles))
        graphs.let_go(stage.model)
        give_back_memory(4 * stage.parameters)
    return tuple(result)


def _counts(stage: Stage, decided: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for precision in decided:
        if precision != FLOAT:
            counts[precision] = counts.get(precision, 0) + 1
    rest = stage.nodes - sum(counts.values())
    return counts | ({FLOAT: rest} if rest > 0 else {})


def _precisions(model: ir.Model) -> tuple[str, ...]:
    """Returns the precisions that tensors of a graph have, int8 inputs of the user's own included."""
    found = set()
    for part in model.graphs():
        values = [*part.inputs, *part.initializers.values(), *(v for node in part for v in node.outputs)]
        found |= {
            str(dtype.numpy()) for v in values if (dtype := v.const_value.dtype if v.const_value else v.dtype)
        }
    return tuple(sorted(name for name, dtype in PRECISIONS.items() if dtype in found))


def rehearsals(variant: Variant, made: Sequence[PlannedGraph], folder: Path) -> dict[str, Path]:
    """Returns the graphs of a variant by their path in the bundle, written to `folder` in a form for this CPU."""
    files = {}
    for listed, graph in zip(variant.engines, made, strict=True):
        file = folder / f"rehearsal-{next(_numbers)}.onnx"
        with graphs.room_in(folder, f"a copy of the graph of '{graph.stage.name}'"):
            graphs.write_mapped(rehearse(graphs.load(graph.file)), file)
        files[listed.file] = file
        give_back_memory(4 * graph.stage.parameters)
    return files


def entry(graph: PlannedGraph, variant: str, target: Target) -> EngineEntry:
    """Returns how the manifest lists a graph."""
    return EngineEntry(
        name=graph.stage.name,
        stages=graph.covers,
        file=f"engines/{variant}/{graph.stage.name}.onnx",
        inputs=tuple(i.name for i in graph.stage.inputs),
        outputs=tuple(o.name for o in graph.stage.outputs),
        decisions=graph.decisions,
        backend=NVIDIA[target.backends[0]],
        options={
            "module": target.module,
            "profiles": json.loads(json.dumps([p.to_json() for p in graph.profiles])),  # as a reader has them
            "precisions": list(graph.precisions),
            "build": {},
        },
    )


def describe(
    proposal: TrtProposal, made: Sequence[PlannedGraph], layout: Layout, target: Target
) -> tuple[Variant, dict[str, Path]]:
    """Returns the variant of a plan for a target, and its files by their path in the bundle."""
    name = f"{target.name}-{proposal.precision}"
    entries = tuple(entry(graph, name, target) for graph in made)
    total: dict[str, int] = {}
    for graph in made:
        for precision, count in graph.decisions.items():
            total[precision] = total.get(precision, 0) + count
    files = {e.file: graph.file for e, graph in zip(entries, made, strict=True)}
    variant = Variant(
        name=name,
        target=target.name,
        backend=NVIDIA[target.backends[0]],
        precision=proposal.precision,
        layout=layout.name,
        engines=entries,
        decisions=total,
        size_bytes=sum(file.stat().st_size for file in files.values()),
    )
    return variant, files


def objection(findings: Mapping[str, Sequence[Finding]]) -> str | None:
    """Returns what the lint says against building, of findings by stage, or None."""
    errors = [(stage, f) for stage, found in findings.items() for f in found if f.severity == ERROR]
    if not errors:
        return None
    stage, first = errors[0]
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"stage '{stage}', {first.where}: {first.reason}; {first.fix}{more}"


def warnings(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Returns what the lint warns of, each once; what is about a graph as a whole once for all graphs."""
    every = [f for found in findings.values() for f in found if f.severity == WARNING]
    texts: dict[tuple[str, ...], str] = {}
    for f in every:
        whole = not f.node and not f.tensor
        text = f"{f.reason}; {f.fix}" if whole else f"{f.where}: {f.reason}; {f.fix}"
        texts.setdefault((f.rule, f.fix) if whole else (text,), text)
    return list(texts.values())


def tally(findings: Mapping[str, Sequence[Finding]]) -> dict[str, int]:
    """Returns severity -> number of findings."""
    every = [f.severity for found in findings.values() for f in found]
    return {severity: every.count(severity) for severity in SEVERITIES}


@dataclass(frozen=True, slots=True)
class Built:
    """The engines of one variant.

    Attributes:
        files: Path in the bundle -> file, engines and their sidecars.
        sidecars: Engine name -> path in the bundle, and what the sidecar says.
    """

    files: Mapping[str, Path]
    sidecars: Mapping[str, tuple[str, Sidecar]]

    def to_json(self) -> dict[str, Any]:
        """Returns what the manifest keeps of the builds, by engine."""
        return {
            name: {
                "file": path,
                "size_bytes": s.size,
                "seconds": s.seconds,
                "by": f"{s.flavour} {s.version}",
                "compute_capabilities": list(s.compute_capabilities),
                "layers": dict(s.precisions),
                "weight_bytes": dict(s.weights),
            }
            for name, (path, s) in self.sidecars.items()
        }


def build_engines(
    variant: Variant, made: Sequence[PlannedGraph], target: Target, folder: Path, tell: Callable[[str], None]
) -> Built:
    """Returns the engines of a variant, built for the GPUs of its target.

    Raises:
        EdgemmError: The builder refuses a graph, crashes or takes too long, or it is not installed.
    """
    files: dict[str, Path] = {}
    sidecars: dict[str, tuple[str, Sidecar]] = {}
    assert target.module is not None
    assert target.sm is not None
    for listed, graph in zip(variant.engines, made, strict=True):

        def watch(progress: Progress, name: str = graph.stage.name) -> None:
            tell(f"{variant.name}, {name}: {progress}")

        request = BuildRequest(
            graph.file,
            folder / f"tensorrt-{next(_numbers)}.engine",
            target.module,
            graph.stage.name,
            graph.stage.modalities,
            (target.sm,),
            graph.profiles,
            graph.precisions,
        )
        built = build_engine(request, Supervision(progress=watch))
        path = engine_path(listed.file, engine_key(built.sidecar))
        files |= {path: built.engine, f"{path}.json": sidecar_file(built.engine)}
        sidecars[listed.name] = path, built.sidecar
    return Built(files, sidecars)


def in_words(error: EdgemmError) -> str:
    """Returns an error of the builder as a reason for refusal."""
    return f"{str(error).rstrip('.')}; {error.hint}" if error.hint else str(error)
