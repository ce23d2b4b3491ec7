"""A plan from a file: written by `edgemm plan --save`, perhaps edited, applied by `edgemm convert --plan`."""

from __future__ import annotations

import json
from pathlib import Path

from edgemm.errors import QuantizationError, did_you_mean
from edgemm.partition import StageGraph
from edgemm.quant.plan import QuantPlan
from edgemm.quant.tensors import named_nodes


def open_plan(path: Path) -> QuantPlan:
    """Returns the plan in a file that `edgemm plan --save` wrote, for whatever model.

    Raises:
        QuantizationError: There is no such file, or it holds no plan.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise QuantizationError(
            f"{path}: no plan can be read: {error}.", hint="write one with edgemm plan MODEL --save plan.json"
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("decisions"), list):
        raise QuantizationError(
            f"{path}: got JSON without a list of decisions, expected a plan.",
            hint="write one with edgemm plan MODEL --save plan.json",
        )
    return QuantPlan.from_json(data)


def read_plan(path: Path, stages: StageGraph) -> QuantPlan:
    """Returns the plan in a file for these stages.

    Raises:
        QuantizationError: There is no such file, it holds no plan, or one for another model.
    """
    plan = open_plan(path)
    nodes = {s.name: named_nodes(s.model.graph) for s in stages.stages}
    for decision in plan.decisions:
        known = nodes.get(decision.stage)
        if known is None or not any(f"{decision.node}/".startswith(f"{name}/") for name in known):
            names = list(nodes) if known is None else list(known)
            raise QuantizationError(
                f"{path}: stage '{decision.stage}' has no node '{decision.node}' in this model.",
                hint=did_you_mean(decision.node, names, "was the plan made from another model or export?"),
            )
    return plan
