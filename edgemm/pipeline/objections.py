"""What keeps a measured variant from shipping, in words: None where nothing does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgemm.pipeline.lineup import MARGIN
from edgemm.pipeline.outcome import Judged
from edgemm.quant.search import TOLERANCE
from edgemm.recipe import Recipe

FAR = 1.25
"""Ratio to float from which milder plans on the same engines are not worth a try."""

REMEDY = "raise --max-drop, give more calibration samples, or use --precision auto to ship what works"


def over_limit(recipe: Recipe, judged: Judged) -> str | None:
    """Objects to more than `--max-latency-ms`."""
    limit = recipe.quantize.max_latency_ms
    if limit is None or judged.ms <= limit:
        return None
    return f"{judged.ms:.3g} ms, more than --max-latency-ms {limit:.3g}"


def too_slow(recipe: Recipe, judged: Judged, sure: Judged) -> str | None:
    """Objects to a variant over the limit, or slower than `sure`, float, that was timed with it."""
    if (objection := over_limit(recipe, judged)) is not None:
        return objection
    timing, ratio = judged.timings[judged.candidate.variant.name], _ratio(judged, sure)
    if not _must_be_faster(recipe) or ratio * MARGIN < 1:
        return None
    floating = judged.timings[sure.candidate.variant.name]
    when = "" if timing.ms / floating.ms == ratio else " when calls come one by one"
    return f"{ratio:.2f} × the latency of float on this machine{when}: no faster"


def far_slower(recipe: Recipe, judged: Judged, sure: Judged) -> bool:
    """Returns whether a variant that was timed with `sure`, float, lost by `FAR` where it had to be faster."""
    return bool(judged.timings) and _must_be_faster(recipe) and _ratio(judged, sure) * MARGIN >= FAR


def _must_be_faster(recipe: Recipe) -> bool:
    return not recipe.quantize.integers_demanded and recipe.quantize.objective != "size"


def _ratio(judged: Judged, sure: Judged) -> float:
    timing, floating = (judged.timings[j.candidate.variant.name] for j in (judged, sure))
    return timing.ratio(floating)


def inaccurate(recipe: Recipe, accuracy: Mapping[str, Any] | None) -> str | None:
    """Objects to an accuracy over the budget, on complete samples or with a modality blank."""
    if accuracy is None:
        return None
    objection = over_budget(recipe, accuracy, accuracy["split"])
    for name, blank in accuracy.get("blank", {}).items():
        objection = objection or over_budget(recipe, blank, accuracy["split"], f" with {name} blank")
    return objection


def over_budget(recipe: Recipe, accuracy: Mapping[str, Any], split: str, blank: str = "") -> str | None:
    """Objects to what `Scorer.measure` found on one split; `blank` says what was blank in it."""
    where, budget = f"{accuracy['samples']} {split} samples{blank}", recipe.evaluate.max_drop
    drop = accuracy["drop"]
    if drop is None:
        return f"{accuracy['metric']} is no number on {where}"
    if drop > budget + TOLERANCE:
        few = drop * accuracy["samples"] < 5
        more = f"; one sample is {1 / accuracy['samples']:.2g}: give more" if few else ""
        return f"{accuracy['metric']} drops by {drop:.4g} on {where}, budget {budget:.4g}{more}"
    lost = 1 - (accuracy["cosine"] or 0.0)
    if accuracy["metric"] == "agreement" and lost > budget:
        return f"cosine with the float output drops by {lost:.4g} on {where}, budget {budget:.4g}"
    return None


def apart(recipe: Recipe, whole: Judged, staged: Judged) -> str | None:
    """Objects to two layouts of one model whose outputs differ: in float by more than an export may."""
    assert whole.parity is not None
    export, found = recipe.export, whole.parity
    bound = (export.absolute_tolerance, export.relative_tolerance)
    exact = all(k.exact for j in (whole, staged) for k in j.proposal.kinds)
    integer = whole.proposal.integer or staged.proposal.integer
    if math.isinf(found.max_abs) or (exact and not integer and not found.within(*bound)):
        return f"one engine and the stages give outputs that are {found.max_abs:.2g} apart"
    return None
