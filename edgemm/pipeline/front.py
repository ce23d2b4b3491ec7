"""The search as files of the bundle: `report/search.json`, and the front as a plot, `report/front.svg`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgemm.pipeline.json_file import json_file
from edgemm.quant.groups import Group, choices_of
from edgemm.quant.plan import FLOAT, QuantPlan
from edgemm.quant.search import Point, SearchResult


def front_files(
    result: SearchResult, groups: Sequence[Group], chosen: QuantPlan | None, budget: float, unit: str = "ms"
) -> dict[str, bytes]:
    """Returns path in the bundle -> bytes. The plot is left out where no point has a latency.

    Args:
        result: What the search found.
        groups: The groups it decided about.
        chosen: The plan that ships, or None.
        budget: Largest drop of the metric.
        unit: What the points are ordered by: `"ms"`, or `"MB"` when the size is the objective.
    """
    data = search_json(result, groups, chosen, budget, unit)
    files = {"report/search.json": json_file(data)}
    if any(math.isfinite(p.ms) and math.isfinite(p.accuracy.worst) for p in result.points):
        files["report/front.svg"] = plot(data)
    return files


def search_json(
    result: SearchResult, groups: Sequence[Group], chosen: QuantPlan | None, budget: float, unit: str
) -> dict[str, Any]:
    """Returns groups with cost and gain, drops by stage, and every point that was scored."""
    return {
        "budget": budget,
        "unit": unit,
        "finished": result.finished,
        "steps": list(result.steps),
        "groups": [
            {
                "name": g.name,
                "stage": g.stage,
                "op": g.op,
                "nodes": list(g.nodes),
                "options": list(g.options),
                "cost": _number(result.cost.get(g.name)),
                "gain": _number(result.gain.get(g.name)),
            }
            for g in groups
        ],
        "stages": {
            name: {"drop": _number(a.drop), "blank": {m: _number(d) for m, d in a.blank.items()}}
            for name, a in result.stages.items()
        },
        "points": [_point(p, groups, chosen) for p in result.points],
    }


def _point(point: Point, groups: Sequence[Group], chosen: QuantPlan | None) -> dict[str, Any]:
    return {
        "expected": _number(point.ms),
        "drop": _number(point.accuracy.drop),
        "blank": {m: _number(d) for m, d in point.accuracy.blank.items()},
        "fits": point.fits,
        "chosen": chosen is not None and _same(point, groups, chosen),
        "setting": {name: p for name, p in point.setting.items() if p != FLOAT},
    }


def _same(point: Point, groups: Sequence[Group], chosen: QuantPlan) -> bool:
    of_plan = {(d.stage, d.node): d for d in chosen.decisions if d.precision != FLOAT}
    wanted = choices_of(tuple(groups), point.setting)
    if any((of_plan[n].precision if n in of_plan else FLOAT) != precision for n, precision in wanted.items()):
        return False
    own = {(d.stage, d.node): d.options for d in point.plan.decisions}
    return all(own.get(node) == d.options for node, d in of_plan.items())  # repairs are in the options


def plot(data: Mapping[str, Any]) -> bytes:
    """Returns the points of the search as SVG: expected latency against the worst drop, the budget as a line."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    points = [p for p in data["points"] if p["expected"] is not None and p["drop"] is not None]
    with rc_context({"svg.hashsalt": "edgemm", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        shown: dict[str, tuple[str, list[tuple[float, float]]]] = {
            "over the budget": ("0.6", []),
            "within the budget": ("tab:blue", []),
            "ships": ("tab:red", []),
        }
        for point in points:
            worst = max([point["drop"], *(d for d in point["blank"].values() if d is not None)])
            label = "ships" if point["chosen"] else "within the budget" if point["fits"] else "over the budget"
            shown[label][1].append((point["expected"], worst))
        for label, (color, places) in shown.items():
            if places:
                axes.scatter(*zip(*places, strict=True), color=color, label=label)
        axes.axhline(data["budget"], color="tab:green", linewidth=1, label="budget")
        axes.set_xlabel(f"expected {'size' if data['unit'] == 'MB' else 'latency'} ({data['unit']})")
        axes.set_ylabel("drop of the metric on the search samples")
        axes.legend()
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
