"""How modalities meet: the kind of each node whose inputs come from different stages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from edgemm.partition.layout import Layout
from edgemm.partition.modalities import outer_inputs
from edgemm.partition.stages import Join

_GATES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh"})
_SUMS = frozenset({"Add", "Sub", "Sum", "Mean"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})
# these move values without mixing them: a gate or a weight is still one behind them
_MOVES = frozenset(
    {"Cast", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)
# between q·k and softmax: scaling, masking, soft-capping; between softmax and ·v: the guard of all-masked rows
_SCORES = _MOVES | {"Add", "Clip", "Div", "Mul", "Sub", "Tanh", "Where"}
_AFTER_SOFTMAX = _MOVES | {"Where"}
_SHIFTS = frozenset({"Add", "Mul", "Neg", "Sub"})
_FARTHEST = 64  # nodes to look at in one search; a gate farther away than that is none


def find_joins(layout: Layout, names: Sequence[str]) -> tuple[Join, ...]:
    """Returns the joins of every stage, in graph order within a stage.

    A constant, or a shape, comes from no stage. A model input that reaches a node without an encoder counts under
    the name of the stage of its modalities, or of its modalities where there is no such stage.
    """
    masks = layout.masks
    by_mask = {p.mask: n for p, n in zip(layout.plans, names, strict=True)}
    joins: list[Join] = []
    for plan, stage in zip(layout.plans, names, strict=True):
        for node in plan.nodes:
            if masks.get(node.outputs[0], 0) != plan.mask:
                continue
            reached = dict.fromkeys(masks[v] for v in outer_inputs(node) if masks.get(v, 0))
            if len(reached) > 1:
                sources = tuple(by_mask.get(m) or "+".join(layout.modalities.names_of(m)) for m in reached)
                joins.append(Join(node.name or "", node.op_type, join_kind(node, masks), stage, sources))
    return tuple(joins)


def join_kind(node: ir.Node, masks: Mapping[ir.Value, int]) -> str:
    """Returns what kind of fusion `node` does, from its operator and the pattern around it.

    Args:
        node: A node with inputs from several stages.
        masks: Modality sets; a value without one is a constant.
    """
    op = node.op_type
    if op == "Concat":
        return "concat"
    if op in _SUMS:
        return "weighted sum" if any(_is_weighted(v, masks) for v in node.inputs) else "add"
    if op == "Mul":
        if sum(_is_gate(v, masks) for v in node.inputs) == 1:
            return "gate"
        return "bilinear" if _is_outer(node) else "product"
    if op in _PRODUCTS:
        return "attention" if _makes_scores(node) or _takes_scores(node) else "bilinear"
    if op in _ATTENTION:
        return "attention"
    return "select" if op == "Where" else op.lower()


def _is_weighted(value: ir.Value | None, masks: Mapping[ir.Value, int]) -> bool:
    """Says whether `value` is something times one constant number."""

    def is_scaling(node: ir.Node) -> bool:
        return node.op_type == "Mul" and any(
            v is not None and not masks.get(v, 0) and v.shape is not None and all(d == 1 for d in v.shape)
            for v in node.inputs
        )

    return _search(_producers([value]), is_scaling, _MOVES, _back) is not None


def _is_gate(value: ir.Value | None, masks: Mapping[ir.Value, int]) -> bool:
    """Says whether `value` is a Sigmoid, Softmax or Tanh, up to moves and constants (as in 1 - gate)."""

    def back(node: ir.Node) -> Iterable[ir.Node]:
        if node.op_type in _SHIFTS and sum(bool(masks.get(v, 0)) for v in node.inputs if v is not None) > 1:
            return ()
        return _back(node)

    return _search(_producers([value]), lambda n: n.op_type in _GATES, _MOVES | _SHIFTS, back) is not None


def _is_outer(node: ir.Node) -> bool:
    """Says whether both operands are broadcast: [.., n, 1] times [.., 1, m]."""
    shapes = [v.shape for v in node.inputs if v is not None]
    if len(shapes) != 2 or shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return False
    pairs = list(zip(shapes[0], shapes[1], strict=True))
    return any(a == 1 and b != 1 for a, b in pairs) and any(b == 1 and a != 1 for a, b in pairs)


def _makes_scores(node: ir.Node) -> bool:
    softmax = _search(_forward(node), lambda n: n.op_type == "Softmax", _SCORES, _forward)
    if softmax is None:
        return False
    return _search(_forward(softmax), lambda n: n.op_type in _PRODUCTS, _AFTER_SOFTMAX, _forward) is not None


def _takes_scores(node: ir.Node) -> bool:
    return _search(_back(node), lambda n: n.op_type == "Softmax", _AFTER_SOFTMAX, _back) is not None


def _search(
    start: Iterable[ir.Node],
    wanted: Callable[[ir.Node], bool],
    through: Collection[str],
    step: Callable[[ir.Node], Iterable[ir.Node]],
) -> ir.Node | None:
    """Returns the first node that is `wanted`, going on only through nodes of the given operators."""
    queue = list(dict.fromkeys(start))
    for node in queue:
        if wanted(node):
            return node
        if node.op_type in through and len(queue) < _FARTHEST:
            queue.extend(n for n in step(node) if n not in queue)
    return None


def _producers(values: Iterable[ir.Value | None]) -> list[ir.Node]:
    nodes = (v.producer() for v in values if v is not None)
    return [n for n in nodes if n is not None]


def _back(node: ir.Node) -> list[ir.Node]:
    # only the first input of a move carries the values; the others say where to
    return _producers(node.inputs[:1] if node.op_type in _MOVES else node.inputs)


def _forward(node: ir.Node) -> list[ir.Node]:
    return [user for output in node.outputs for user, _ in output.uses()]
