"""The story of `edgemm convert`: a recipe in, a bundle out. Read this file first.

    load ─▶ export ─▶ rewrite ─▶ partition ─▶ calibrate ─▶ plan ─▶ search ─▶ verify ─▶ bundle

`splits` divides the samples, `candidates` builds variants, `scoring` and `timing` measure them, `variants`
chooses, `gaps` adds what stands for missing modalities, `result` tells what it came to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.backends.targets import AUTO, Target, find_target, find_targets, list_targets
from edgemm.bundle import Manifest, StageEntry, check_output, write_bundle
from edgemm.errors import BackendError, QuantizationError, RecipeError
from edgemm.export.request import ExportResult
from edgemm.graph import ExportedGraph, preprocessing_bytes, size
from edgemm.memory import give_back_memory, long_lived
from edgemm.metrics import choose_output
from edgemm.partition import StageGraph, partition
from edgemm.pipeline.candidates import Layout, Workbench, staged, whole
from edgemm.pipeline.exporting import export
from edgemm.pipeline.gaps import Filler
from edgemm.pipeline.json_file import json_file
from edgemm.pipeline.missing import find_cuts, kept_policy
from edgemm.pipeline.outcome import Outcome
from edgemm.pipeline.preprocessing import bake_preprocessing, read_preprocessing, shipped
from edgemm.pipeline.progress import Clock, Progress, Silent
from edgemm.pipeline.provenance import measured_here, tool_versions
from edgemm.pipeline.rates import check_rates
from edgemm.pipeline.result import ConvertResult
from edgemm.pipeline.saved_plan import open_plan
from edgemm.pipeline.scoring import check_metric
from edgemm.pipeline.shapes import find_shapes
from edgemm.pipeline.splits import Splits, divide, open_splits
from edgemm.pipeline.tensorrt import TrtContest
from edgemm.pipeline.variants import Contest
from edgemm.pipeline.wishes import behind_wanted, check_cuts, check_fills, check_policy
from edgemm.preprocess import parse, to_json
from edgemm.quant.plan import HALF
from edgemm.quant.ruled import find_ruled
from edgemm.quant.tensorrt.placement import TARGET as TENSORRT_PLAN
from edgemm.recipe import Recipe, build_recipe
from edgemm.recipe.rules import QuantizeRule
from edgemm.rewrite.pipeline import rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

RARE = ("fp8", "int4")
"""Precisions that are only demanded, and that only some targets have."""

__all__ = ["ConvertResult", "Progress", "convert"]


def convert(
    recipe: Recipe | Mapping[str, Any],
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Returns the bundle that was written to `output`, with everything that was measured.

    Args:
        recipe: A `Recipe`, or its sections as a dict: `{"model": {"path": "model.pt2"}, "data": {...}}`.
        output: The bundle's directory. It is written whole or not at all.
        force: Replace an existing bundle.
        progress: Told about every step.

    Raises:
        EdgemmError: With what is wrong (name, got, expected) and a hint. Nothing is written then.
    """
    recipe = recipe if isinstance(recipe, Recipe) else build_recipe(recipe, where="recipe")
    output = Path(output)
    progress = progress or Silent()
    clock = Clock()
    check_output(output, force=force)
    check_metric(recipe.evaluate, recipe.data.label)
    check_fills(recipe)
    targets = targets_of(recipe)
    with tempfile.TemporaryDirectory(prefix="edgemm-") as folder:
        manifest, files = _convert(recipe, targets, Path(folder), progress, clock)
        return ConvertResult(output, write_bundle(output, manifest, files, force=force))


def _convert(
    recipe: Recipe, targets: tuple[Target, ...], folder: Path, progress: Progress, clock: Clock
) -> tuple[Manifest, dict[str, bytes | Path]]:
    """Returns the manifest and the files of the bundle; drafts of engines are in `folder`."""
    with clock("load"):
        splits = open_splits(recipe.data)
        front = read_preprocessing(recipe, splits.any)
    exported = export(recipe, splits.any, folder, progress, clock)
    progress.step("export", _export_line(exported))
    if recipe.evaluate.output is not None:
        choose_output(exported.graph.io, recipe.evaluate.output)
    with clock("preprocess"):
        exported, front = bake_preprocessing(exported, front, splits.any, progress)
        given, recipe = recipe, front.resolved(recipe, splits.any, folder)
        splits = replace(splits, calib=front.for_graph(splits.calib), held_out=front.for_graph(splits.held_out))
    check_policy(recipe, exported.graph.io)
    check_rates(given, exported.graph.io)
    with clock("partition"):
        graph, _ = rewrite(exported.graph)
        stages = partition(graph)
    progress.step("partition", _stages_line(stages))
    find_ruled(recipe.quantize.rules, stages)  # a rule that matches nothing is said before anything is measured
    check_cuts(recipe, find_cuts(stages, graph.io), graph.io)
    notes = [*exported.notes, *front.notes, *stages.notes, *_layout_notes(recipe, stages)]
    with clock("data"):
        splits = divide(splits, recipe.data, graph.io, notes.append)
    for note in notes:
        progress.step("note", note)
    manifest = _manifest(recipe, exported, stages, splits, notes)
    nvidia = [t for t in targets if t.module is not None]
    with clock("shapes"):
        profiled = any(t.builder is not None for t in nvidia)
        shapes = find_shapes(recipe, stages, graph.io, splits.any_part) if profiled else None
    bench = Workbench(folder, manifest, recipe.threads)
    with clock("partition"):
        bench.settle([exported.graph.model, graph.model, *(s.model for s in stages.stages)])
        give_back_memory()
    baseline, layouts = whole(exported.graph, stages), _layouts(recipe, graph, stages)
    outcome = Outcome((), {}, {}, {})
    with long_lived(), closing(bench):
        if len(nvidia) < len(targets):
            contest = Contest(recipe, stages, baseline, layouts, splits, bench, progress, clock)
            outcome = replace(contest.run(), notes=tuple(contest.notes))
            bench.close()
        if nvidia:
            rest = baseline, layouts[0], splits, shapes, bench, progress, clock
            outcome = outcome.plus(TrtContest(recipe, nvidia, stages, *rest).run())
    if all(v.refused is not None for v in outcome.variants):
        last = outcome.variants[-1]  # the plainest one
        raise BackendError(
            f"nothing can ship: {last.name}: {last.refused}.",
            hint=_REMEDY_FLOAT if "in fp16" in (last.refused or "") else _REMEDY,
        )
    with clock("bundle"):
        variants, files = bench.finish(outcome.variants, outcome.files)
        files["recipe.json"] = _recipe_json(given)
        outcome = replace(outcome, variants=variants)
    with clock("missing"), closing(bench):
        gaps = Filler(recipe, stages, splits, bench, progress).fill(variants, files)
        stream = kept_policy(recipe, gaps)
    outcome = replace(outcome, notes=(*outcome.notes, *gaps.notes))
    manifest = replace(manifest, stream=stream, stand_ins=tuple(gaps.stand_ins), heads=tuple(gaps.heads))
    manifest = front.described(manifest)
    files |= gaps.files | front.files()
    return _complete(manifest, exported.graph.model, outcome, clock, recipe.threads), files


_REMEDY = "give another target, --target cpu for example, or take what it names out of the model"
_REMEDY_FLOAT = "use --precision auto or fp16 with calibration samples (--calib)"


def targets_of(recipe: Recipe) -> tuple[Target, ...]:
    """Returns what the bundle is made for.

    Raises:
        BackendError: There is no such target.
        RecipeError: It cannot have the precision that is demanded, or the plan is for another target.
    """
    targets = find_targets(recipe.target)
    for target in targets:
        by_auto = AUTO in recipe.target and target == find_target(AUTO) and target.name not in recipe.target
        _can_have(target, recipe.quantize.precision, " (what 'auto' is on this machine)" if by_auto else "")
        _can_follow(target, recipe.quantize.rules)
    if recipe.quantize.plan is not None:
        made_for = open_plan(recipe.quantize.plan).target
        for target in targets:
            if (target.module is not None) != (made_for == TENSORRT_PLAN):
                raise QuantizationError(
                    f"{recipe.quantize.plan}: the plan is for '{made_for}', not for '{target.name}'.",
                    hint="convert for each kind of target by itself, with its own plan",
                )
    return targets


def _can_have(target: Target, precision: str, auto: str = "") -> None:
    """Checks that a target has a precision that is demanded and that not every target has."""
    if target.module is None and precision in (HALF, *RARE):
        raise RecipeError(
            f"precision {precision} is for NVIDIA targets, not for '{target.name}'{auto}.",
            hint="use --precision auto, or name an NVIDIA target (edgemm targets)",
        )
    if precision in RARE and precision not in target.precisions:
        sm = f" (SM {target.sm})" if target.sm else ""
        able = [t.name for t in list_targets() if t.module is not None and precision in t.precisions]
        raise RecipeError(
            f"precision {precision} does not exist on {target.name}{sm}{auto}: "
            f"it has {', '.join(target.precisions)}.",
            hint=f"use --precision auto; {precision} is for {', '.join(able)}",
        )


def _can_follow(target: Target, rules: Sequence[QuantizeRule]) -> None:
    """Checks that a target has what rules ask for: integers by rule are for CPUs, fp16 for NVIDIA targets."""
    nvidia = target.module is not None
    for number, rule in enumerate(rules):
        if (rule.integer and nvidia) or (rule.precision == HALF and not nvidia):
            kind = "CPU" if nvidia else "NVIDIA"
            raise RecipeError(
                f"quantize.rules.{number}: {rule.precision} is for {kind} targets, not for '{target.name}'.",
                hint="convert for each kind of target by itself; rules with `precision: float` hold for all",
            )


def _layouts(recipe: Recipe, graph: ExportedGraph, stages: StageGraph) -> tuple[Layout, ...]:
    """Returns the layouts that may ship, the preferred one first.

    One stage is one engine either way. What stands for a missing modality behind its encoder needs the cut.
    """
    if recipe.layout == "whole":
        return (whole(graph, stages),)
    cut = recipe.layout == "staged" or (recipe.layout == "auto" and bool(_behind(recipe)))
    if cut or len(stages.stages) < 2:
        return (staged(stages),)
    return staged(stages), whole(graph, stages)


def _behind(recipe: Recipe) -> tuple[str, ...]:
    """Returns modalities and heads that the recipe wants something for behind an encoder."""
    return (*behind_wanted(recipe), *(f"head '{name}'" for name in recipe.missing.heads))


def _layout_notes(recipe: Recipe, stages: StageGraph) -> tuple[str, ...]:
    """Returns what a wish for something behind an encoder costs."""
    wanted = _behind(recipe)
    if recipe.layout != "auto" or not wanted or len(stages.stages) < 2:
        return ()
    return (
        f"one engine per stage, for what goes in behind the encoders ({', '.join(wanted)}); one engine for all, "
        "which is faster for small models, was not tried: --layout both ships it beside the stages",
    )


def _export_line(exported: ExportResult) -> str:
    dims = exported.dynamic.dynamic
    checked = {d.symbol: ", ".join(map(str, d.checked)) for d in dims}
    text = "; ".join(f"{symbol} dynamic (checked at {sizes})" for symbol, sizes in checked.items())
    reasons: dict[str, list[str]] = {}
    for f in exported.dynamic.fixed:
        reasons.setdefault(f.reason, []).append(f"{f.tensor} axis {f.axis} fixed at {f.size}")
    fixed = "; ".join(f"{', '.join(dims)}: {reason}" for reason, dims in reasons.items())
    opset = exported.graph.model.opset_imports.get("", 0)
    parity = f"parity max-abs {exported.parity.max_abs:.1e}, cosine {exported.parity.cosine:.6f}"
    return "; ".join(part for part in (f"ONNX opset {opset}", text, fixed, parity) if part)


def _stages_line(stages: StageGraph) -> str:
    names = " · ".join(f"{s.name} ({s.role}, {s.nodes} node{'s' * (s.nodes != 1)})" for s in stages.stages)
    kinds = ", ".join(dict.fromkeys(j.kind for j in stages.joins))
    count = len(stages.stages)
    return f"{count} stage{'s' * (count != 1)}: {names}" + (f"; joined by {kinds}" if kinds else "")


def _manifest(
    recipe: Recipe,
    exported: ExportResult,
    stages: StageGraph,
    splits: Splits,
    notes: Sequence[str],
) -> Manifest:
    """Returns the manifest as far as it is known before a variant is chosen."""
    origin = exported.graph.provenance
    return Manifest(
        name=recipe.model.path.name.split(".")[0] or "model",
        io=exported.graph.io,
        stages=tuple(
            StageEntry(s.name, s.modalities, s.role, s.inputs, s.outputs, s.nodes, s.parameters)
            for s in stages.stages
        ),
        joins=tuple(asdict(j) for j in stages.joins),
        variants=(),
        info={
            "model": {
                "source": recipe.model.path.name,
                **{key: origin[key] for key in ("kind", "sha256", "parameters")},
                "opset": exported.graph.model.opset_imports.get("", 0),
            },
            "dynamic": exported.dynamic.to_json(),
            "parity": exported.parity.to_json(),
            "data": splits.to_json(),
            "notes": list(notes),
            "tools": tool_versions(),
        },
    )


def _complete(manifest: Manifest, model: ir.Model, outcome: Outcome, clock: Clock, threads: int) -> Manifest:
    seconds = {step: round(value, 3) for step, value in clock.seconds.items()}
    info = {
        "float_size_bytes": size(model),
        **({"preprocess_bytes": constants} if (constants := preprocessing_bytes(model)) else {}),
        "precision": outcome.precision,
        "notes": list(dict.fromkeys([*manifest.info["notes"], *outcome.notes])),
        **({"lint": outcome.lint} if outcome.lint else {}),
    }
    return replace(
        manifest,
        variants=outcome.variants,
        info={**manifest.info, **info},
        measured={
            **measured_here(threads),
            "seconds": seconds | {"total": round(sum(clock.seconds.values()), 3)},
            "latency": outcome.latency,
            **({"engines": outcome.engines} if outcome.engines else {}),
            **({"layouts": outcome.layouts} if outcome.layouts else {}),
        },
    )


def _recipe_json(recipe: Recipe) -> bytes:
    """Returns the recipe without the folders of this machine: where the files lay is nobody else's business."""
    data = recipe.model_dump(mode="json")

    def name(text: str | None) -> str | None:
        return text if text is None else text.rsplit("/", 1)[-1]

    data["model"]["path"], data["model"]["factory"] = name(data["model"]["path"]), name(data["model"]["factory"])
    data["data"]["calib"], data["data"]["eval"] = name(data["data"]["calib"]), name(data["data"]["eval"])
    data["evaluate"]["metric"] = name(data["evaluate"]["metric"])
    data["quantize"]["plan"] = name(data["quantize"]["plan"])
    for section, given in zip(data["inputs"].values(), recipe.inputs.values(), strict=True):
        section["blank"] = name(section["blank"])
        if given.preprocess is not None:
            section["preprocess"] = to_json(shipped(parse(given.preprocess)))
    return json_file(data)
