"""What plans rest on, whatever they are for: calibrated ranges, and accuracy on the search samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edgemm.partition import Stage, StageGraph
from edgemm.pipeline.progress import Progress
from edgemm.pipeline.scoring import choose_metric
from edgemm.pipeline.silence import Silence
from edgemm.pipeline.splits import Splits
from edgemm.quant.cache import Results, cache_folder
from edgemm.quant.collect import collect
from edgemm.quant.joins import join_warnings
from edgemm.quant.measure import ChainMeasure, Scoring
from edgemm.quant.placement import tensors_to_calibrate
from edgemm.quant.table import CalibrationTable
from edgemm.recipe import Recipe

M = TypeVar("M", bound=ChainMeasure)


def calibrate(
    stages: StageGraph,
    silence: Silence,
    progress: Progress,
    title: str = "",
    tensors: Callable[[Stage], tuple[str, ...]] = tensors_to_calibrate,
) -> tuple[CalibrationTable, tuple[str, ...]]:
    """Returns ranges over the calibration samples, some of them with a modality blank, and what these lack.

    Args:
        stages: The float stages.
        silence: The samples, and what a silent modality looks like.
        progress: Told how far it is, and what it came to.
        title: What the ranges are for, in front of that.
        tensors: Names the tensors of a stage that are watched.
    """
    samples, blank = silence.mixed()
    calibrator = silence.recipe.quantize.calibrator
    table = collect(
        stages,
        silence.io,
        samples,
        calibrator,
        lambda done, total: progress.bar("calibrate", done, total),
        tensors,
    )
    blanks = "".join(f", {count} with {name} blank" for name, count in blank.items())
    progress.step(
        "calibrate", f"{title}{table.samples} samples{blanks}; {len(table.ranges)} tensors, {table.calibrator}"
    )
    lacking = table.coverage.warnings() if table.coverage is not None else ()
    return table, (*lacking, *join_warnings(stages, table), *silence.warnings())


def search_measure(
    kind: type[M], stages: StageGraph, table: CalibrationTable, splits: Splits, silence: Silence
) -> M:
    """Returns what measures the accuracy of plans on the search samples, complete and blank.

    Args:
        kind: How a plan becomes a graph.
        stages: The float stages.
        table: Their ranges.
        splits: The samples; those for the search are there.
        silence: What a silent modality looks like.
    """
    recipe, samples = silence.recipe, splits.search
    assert samples is not None
    metric = choose_metric(recipe.evaluate, samples, splits.search_label)
    scoring = Scoring(metric, splits.search_label, recipe.evaluate.output)
    return kind(stages, silence.io, table, samples, scoring, silence.twins(samples), _results(recipe, splits))


def _results(recipe: Recipe, splits: Splits) -> Results:
    """Returns the numbers of earlier runs; none where data or metric may be others without anybody's notice."""
    known = getattr(splits.calibration, "digest", None) is not None
    if not recipe.quantize.cache or not known or ".py:" in (recipe.evaluate.metric or ""):
        return Results()
    return Results.open(cache_folder() / "search.jsonl")
