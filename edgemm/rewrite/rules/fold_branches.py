"""An If that needs no choice goes, and its branches do not repeat what is known outside.

    If(c, f, g), c constant or told by shapes    -> f or g
    If(c, f, f′), f and f′ equal up to names     -> f
    y = f(x), If(c, … f(x) …, …)                 -> y = f(x), If(c, … y …, …)   for a node f in front of the If

A condition that depends on values stays: the branch that is not taken costs nothing, which computing both and
choosing with Where does not. Declined for branches with random nodes or branches of their own, and for a result
of a branch, which must be computed in it. Comes after `fold_shapes`, which makes shapes constant.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.partition.modalities import is_random
from edgemm.rewrite import build, twins
from edgemm.rewrite.rules import fold_constants
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Folds the Ifs of the main graph; returns how many went, and how many nodes of branches."""
    choices = _choices(model)
    if not choices:
        return 0
    fold_constants.apply(model, io)  # conditions that have become constant, and the branches behind them
    alike = [n for n in _choices(model) if _branches_agree(n)]
    for node in alike:
        node.replace_input_with(0, build.Builder(node).constant(np.array(True)))
    if alike:
        fold_constants.apply(model, io)
    left = _choices(model)
    return max(len(choices) - len(left), 0) + sum(_read_outside(n) for n in left)


def _choices(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == "If" and n.domain == ""]


def _branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    return node.attributes["then_branch"].as_graph(), node.attributes["else_branch"].as_graph()


def _branches_agree(node: ir.Node) -> bool:
    one, other = _branches(node)
    return all(_agree(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))


def _agree(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values of different branches are computed alike from what is outside."""
    pending, seen = [(a, b)], set()
    while pending:
        pair = pending.pop()
        if pair in seen or twins.equal(*pair):
            continue
        seen.add(pair)
        if pair[0] is None or pair[1] is None or pair[0].index() != pair[1].index():
            return False
        one, other = pair[0].producer(), pair[1].producer()
        if one is None or other is None or not twins.same_operator(one, other) or is_random(one):
            return False
        pending += zip(one.inputs, other.inputs, strict=True)
    return True


def _read_outside(choice: ir.Node) -> int:
    """Replaces nodes of branches by what a node in front of `choice` computes; returns how many."""
    graph = choice.graph
    ahead: set[ir.Node] = set()
    for node in graph or ():
        if node is choice:
            break
        ahead.add(node)
    count = 0
    for branch in _branches(choice):
        for node in list(branch):
            found = _same_ahead(node, ahead)
            if found is None or any(o.is_graph_output() for o in node.outputs):
                continue
            for inner, outer in zip(node.outputs, found.outputs, strict=True):
                ir.convenience.replace_all_uses_with(inner, outer)
            branch.remove(node, safe=True)
            count += 1
    return count


def _same_ahead(node: ir.Node, ahead: set[ir.Node]) -> ir.Node | None:
    source = node.inputs[0] if node.inputs else None
    if source is None or is_random(node):
        return None
    others = [u.node for u in source.uses() if u.idx == 0 and u.node in ahead]
    for other in others:
        if twins.same_operator(node, other) and all(map(twins.equal, node.inputs, other.inputs)):
            return other
    return None
