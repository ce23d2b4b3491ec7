"""Per fixture: size and build seconds of TensorRT engines in each precision, and what the lint finds.

    python -m benchmarks.engines [NAME ...] [--sm 86,120] [--json OUT]

It needs TensorRT for RTX (`pip install 'edgemm[rtx]'`) and no GPU: one engine per stage, precision and compute
capability is built for GPUs that are not here. The plans are those of the placement rules, calibrated on a few
samples; no accuracy is measured and no milder plan is tried, so what `edgemm convert` ships may be another one.
Engines hold weights and compiled kernels: those of small models are mostly kernels. The load average of the
machine, before and after, tells how much else ran.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.driver import Row, keep
from benchmarks.fixtures import FIXTURES, build
from benchmarks.rewrites import exported
from edgemm.backends.targets import Target, find_target
from edgemm.data import Subset, open_samples
from edgemm.errors import EdgemmError
from edgemm.partition import StageGraph, partition
from edgemm.pipeline.candidates import Layout, staged
from edgemm.pipeline.shapes import find_shapes
from edgemm.pipeline.tensorrt_graphs import PlannedGraph, build_engines, describe, in_words, tally, write_graphs
from edgemm.pipeline.tensorrt_plans import TrtProposal
from edgemm.quant.collect import collect
from edgemm.quant.plan import FLOAT, HALF, INT8
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensorrt.formats import BY_NAME, FORMATS
from edgemm.quant.tensorrt.placement import plan_half, plan_tensorrt, tensors_to_watch
from edgemm.quant.tensors import WEIGHTED
from edgemm.recipe import build_recipe
from edgemm.rewrite import rewrite

SAMPLES = 32
"""Samples that calibrate."""


def row(name: str, capabilities: Sequence[int]) -> Row:
    """Returns everything that is measured of one fixture."""
    fixture = build(name)
    graph, _ = rewrite(exported(fixture)[0])
    stages = partition(graph)
    samples = open_samples(str(fixture.calib))
    few = Subset(samples, tuple(range(min(SAMPLES, len(samples)))))
    shapes = find_shapes(build_recipe({"model": {"path": fixture.model}}, where="recipe"), stages, graph.io, few)
    table = collect(stages, graph.io, few, "minmax", tensors=tensors_to_watch)
    targets = [find_target(f"sm{capability}") for capability in capabilities]
    result: Row = {
        "fixture": name,
        "stages": {s.name: {"nodes": s.nodes, "parameters": s.parameters} for s in stages.stages},
        "load_average": [round(os.getloadavg()[0], 2)],
        "engines": {str(t.sm): {} for t in targets},
    }
    with tempfile.TemporaryDirectory() as folder:
        for proposal in proposals(stages, table):
            if proposal.objection is not None:
                result[f"no_{proposal.precision}"] = proposal.objection
                continue
            able = [t for t in targets if proposal.precision in (FLOAT, *t.precisions)]
            try:
                made = write_graphs(proposal, staged(stages), shapes, Path(folder)) if able else ()
            except EdgemmError as error:
                result[f"no_{proposal.precision}"] = in_words(error)
                continue
            for target in able:
                found = built(proposal, made, staged(stages), target, Path(folder))
                result["engines"][str(target.sm)][proposal.precision] = found
    result["load_average"].append(round(os.getloadavg()[0], 2))
    return result


def proposals(stages: StageGraph, table: CalibrationTable) -> Iterator[TrtProposal]:
    """Yields float32, fp16, and each low format beside fp16 by the rules; an objection where nothing is in it."""
    yield TrtProposal(FLOAT)
    yield TrtProposal(HALF, plan_half(stages, table, HALF), table)
    for form in FORMATS.values():
        plan = plan_tensorrt(stages, table, HALF, low=form.precision)
        reasons = dict.fromkeys(f"{d.op}: {d.reason}" for d in plan.decisions if d.op in WEIGHTED)
        nothing = None if form.precision in plan.counts() else "; ".join(reasons) or "no Conv, Gemm or MatMul"
        yield TrtProposal(form.name, plan, table, nothing)


def built(
    proposal: TrtProposal, made: Sequence[PlannedGraph], layout: Layout, target: Target, folder: Path
) -> dict[str, Any]:
    """Returns size, seconds and findings of the engines of one plan, by stage, with the failures."""
    findings = {graph.stage.name: graph.check(target) for graph in made}
    counts: dict[str, int] = {}
    engines: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for graph in made:
        for precision, count in graph.decisions.items():
            counts[precision] = counts.get(precision, 0) + count
        variant, _ = describe(proposal, (graph,), layout, target)
        try:
            done = build_engines(variant, (graph,), target, folder, lambda _: None)
        except EdgemmError as error:
            failures[graph.stage.name] = in_words(error)
            continue
        ((_, sidecar),) = done.sidecars.values()
        engines[graph.stage.name] = {
            "bytes": sidecar.size,
            "seconds": round(sidecar.seconds, 2),
            "layers": dict(sidecar.precisions),
            "weight_bytes": dict(sidecar.weights),
        }
        for file in done.files.values():
            file.unlink()
    return {
        "bytes": sum(e["bytes"] for e in engines.values()),
        "seconds": round(sum(e["seconds"] for e in engines.values()), 2),
        "nodes": counts,
        "findings": tally(findings),
        "failures": failures,
        "stages": engines,
    }


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    columns = (
        "fixture",
        "stages",
        "SM",
        "float kB",
        "fp16 kB",
        "int8 kB",
        "fp8 kB",
        "int4 kB",
        "int8 nodes",
        "s",
        "findings",
        "failures",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("fixture", "failures") else "right")
    for r in rows:
        for capability, by_precision in r["engines"].items():
            table.add_row(r["fixture"], str(len(r["stages"])), capability, *_cells(by_precision))
    Console(width=160).print(table)


def _cells(by_precision: Mapping[str, Any]) -> list[str]:
    sizes = []
    for precision in (FLOAT, HALF, *BY_NAME):
        found = by_precision.get(precision)
        sizes.append("-" if found is None or found["failures"] else f"{found['bytes'] / 1e3:.0f}")
    nodes = by_precision[INT8]["nodes"][INT8] if INT8 in by_precision else 0
    seconds = "+".join(f"{found['seconds']:.0f}" for found in by_precision.values())
    findings: dict[str, int] = {}
    for found in by_precision.values():
        for severity, count in found["findings"].items():
            findings[severity] = findings.get(severity, 0) + count
    told = ", ".join(f"{count} {severity}" for severity, count in findings.items() if count)
    failed = [f"{p} {s}: {why}" for p, f in by_precision.items() for s, why in f["failures"].items()]
    return [*sizes, str(nodes), seconds, told or "none", "; ".join(failed) or "none"]


def main() -> None:
    """Builds the engines of the named fixtures, prints a table, keeps it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIXTURES))
    parser.add_argument("--sm", default="86,120", help="compute capabilities times ten, by commas")
    parser.add_argument("--json", type=Path, help="where to keep the results; written after every fixture")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for name in options.names or FIXTURES:
        rows.append(row(name, [int(text) for text in options.sm.split(",")]))
        show(rows[-1:])
        if options.json:
            keep(options.json, rows)
    print()
    show(rows)


if __name__ == "__main__":
    main()
