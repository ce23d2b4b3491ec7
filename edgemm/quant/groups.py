"""Nodes that change precision together: what the search decides about, one group at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgemm.partition import StageGraph
from edgemm.quant.plan import FLOAT
from edgemm.quant.tensors import JOINS, constant_array, named_nodes

MOST = 16
"""Groups in a whole model: each costs a measurement of accuracy and one of latency."""

Node = tuple[str, str]
"""Stage name, node name."""

Setting = Mapping[str, str]
"""Group name -> precision. A group that is not listed is float."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring nodes of one stage with the same operator and the same alternatives.

    Attributes:
        name: `stage/node`, or `stage/first…last`; unique.
        stage: Stage name.
        op: Operator type.
        nodes: Node names in graph order.
        options: Precisions besides float32, the best guess first.
        guess: What the placement rules would choose, `"fp32"` included.
        weights: Number of weights.
    """

    name: str
    stage: str
    op: str
    nodes: tuple[str, ...]
    options: tuple[str, ...]
    guess: str
    weights: int


def group_nodes(
    stage_graph: StageGraph, alternatives: Mapping[Node, tuple[str, ...]], most: int = MOST
) -> tuple[Group, ...]:
    """Returns the groups of a model, at most about `most`, in graph order.

    Every node starts alone. While there are too many, the two neighbours with the fewest weights together that
    have the same operator, alternatives and guess become one; a model with many kinds may keep more groups.

    Args:
        stage_graph: The float stages.
        alternatives: Precisions per node, `"fp32"` among them, the best guess first.
        most: Number of groups to aim for.
    """
    parts: list[Group] = []
    for stage in stage_graph.stages:
        for name, node in named_nodes(stage.model.graph).items():
            options = alternatives.get((stage.name, name), ())
            others = tuple(o for o in options if o != FLOAT)
            if others and node.op_type not in JOINS:  # joins follow what they read
                sizes = [a.size for v in node.inputs if (a := constant_array(v)) is not None]
                group = Group(
                    f"{stage.name}/{name}", stage.name, node.op_type, (name,), others, options[0], sum(sizes)
                )
                parts.append(group)
    while len(parts) > most:
        pairs = [i for i in range(len(parts) - 1) if _alike(parts[i], parts[i + 1])]
        if not pairs:
            break
        at = min(pairs, key=lambda i: (parts[i].weights + parts[i + 1].weights, i))
        parts[at : at + 2] = [_joined(parts[at], parts[at + 1])]
    return tuple(parts)


def by_stage(groups: Sequence[Group], setting: Setting) -> dict[str, dict[str, str]]:
    """Returns stage -> the part of a setting that is about it."""
    result: dict[str, dict[str, str]] = {}
    for group in groups:
        if group.name in setting:
            result.setdefault(group.stage, {})[group.name] = setting[group.name]
    return result


def _alike(a: Group, b: Group) -> bool:
    return (a.stage, a.op, a.options, a.guess) == (b.stage, b.op, b.options, b.guess)


def _joined(a: Group, b: Group) -> Group:
    nodes = a.nodes + b.nodes
    name = f"{a.stage}/{nodes[0]}…{nodes[-1]}"
    return Group(name, a.stage, a.op, nodes, a.options, a.guess, a.weights + b.weights)


def choices_of(groups: tuple[Group, ...], setting: Setting) -> dict[Node, str]:
    """Returns the precision of every node of every group under `setting`, for `plan_quantization`."""
    return {(g.stage, node): setting.get(g.name, FLOAT) for g in groups for node in g.nodes}
