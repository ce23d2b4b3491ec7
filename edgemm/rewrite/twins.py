"""Finds twins: nodes that apply the same operator with the same weights to different inputs.

What an encoder that serves two cameras, or both texts of a pair, becomes in an exported graph: its nodes once per
input, over the same initializers or over equal ones with other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import batchwise, build

WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "GRU", "LSTM", "RNN"})
"""Where the search starts: these nodes have weights."""

_SAMPLED = 64
"""Elements of a weight that are looked at before all of them are compared."""

_STORED = frozenset({"DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape"})
"""What may stand between a stored weight and its reader."""

Key = tuple[Any, ...]


def same_operator(a: ir.Node, b: ir.Node) -> bool:
    """Whether two nodes differ in nothing but their values."""
    if (a.domain, a.op_type, a.overload, len(a.inputs), len(a.outputs)) != (
        b.domain,
        b.op_type,
        b.overload,
        len(b.inputs),
        len(b.outputs),
    ):
        return False
    if a.attributes.keys() != b.attributes.keys():
        return False
    return all(_same_attribute(a.attributes[name], b.attributes[name]) for name in a.attributes)


def _same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type != b.type or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) or a.is_ref() or b.is_ref():
        return False
    if a.type == ir.AttributeType.TENSOR:
        one, other = a.as_tensor(), b.as_tensor()
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(a.value == b.value)


def equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values are one, or equal constants, or made of equal constants that are stored otherwise."""
    pending = [(a, b)]
    while pending:
        one, other = pending.pop()
        if one is other:
            continue
        if one is None or other is None:
            return False
        x, y = build.array(one), build.array(other)
        if x is not None and y is not None:
            if not _equal_arrays(x, y):
                return False
            continue
        n, m = one.producer(), other.producer()
        if n is None or m is None or n.op_type not in _STORED or not same_operator(n, m):
            return False
        pending += list(zip(n.inputs, m.inputs, strict=True))
    return True


def _equal_arrays(x: np.ndarray, y: np.ndarray) -> bool:
    if x is y:
        return True
    if x.dtype != y.dtype or x.shape != y.shape or _sample(x) != _sample(y):
        return False
    return bool(np.array_equal(_bytes(x), _bytes(y)))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _sample(array: np.ndarray) -> bytes:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLED)].tobytes()


def seeds(graph: ir.Graph) -> Iterator[tuple[ir.Node, ...]]:
    """Yields nodes with equal weights that read different inputs of equal type and shape, the first ones first.

    A layer that is applied to its own result as well is found once per depth.
    """
    found: dict[Key, list[ir.Node]] = {}
    for node in graph:
        if node.domain == "" and node.op_type in WEIGHTED and (key := _key(node)) is not None:
            found.setdefault(key, []).append(node)
    order = {node: i for i, node in enumerate(graph)}
    families = [f for nodes in found.values() if len(nodes) > 1 for f in _families(nodes)]
    for family in sorted(families, key=lambda f: order[f[0]]):
        yield from _levels(family)


def _key(node: ir.Node) -> Key | None:
    """Returns what twins of `node` share, as far as it is quickly told; None for a node without weights."""
    parts: list[Key] = []
    weighted = False
    for value in node.inputs:
        weight = _weight(value)
        if weight is not None:
            parts.append((str(weight.dtype), weight.shape, _sample(weight)))
            weighted = True
        else:
            parts.append((value is not None and str(value.shape), value is not None and str(value.dtype)))
    return (node.op_type, len(node.outputs), *parts) if weighted else None


def _weight(value: ir.Value | None) -> np.ndarray | None:
    """Returns the constant that `value` is or is dequantized from."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "DequantizeLinear" and node.domain == "":
        value = node.inputs[0]
    return build.array(value)


def _families(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    """Yields those of `nodes` whose weights are equal element by element."""
    rest = list(nodes)
    while rest:
        first, *others = rest
        same = [n for n in others if same_operator(first, n) and _equal_weights(first, n)]
        rest = [n for n in others if n not in same]
        if same:
            yield [first, *same]


def _equal_weights(a: ir.Node, b: ir.Node) -> bool:
    return all(equal(v, w) for v, w in zip(a.inputs, b.inputs, strict=True) if _weight(v) is not None)


def _levels(family: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, ...]]:
    members = set(family)
    depths: dict[int, list[ir.Node]] = {}
    for node in family:
        depths.setdefault(len(ancestors(node) & members), []).append(node)
    for nodes in depths.values():
        if len(nodes) > 1:
            yield tuple(nodes)


def ancestors(node: ir.Node) -> set[ir.Node]:
    """Returns the nodes that `node` depends on."""
    result: set[ir.Node] = set()
    pending = list(node.inputs)
    while pending:
        value = pending.pop()
        producer = value.producer() if value is not None else None
        if producer is not None and producer not in result:
            result.add(producer)
            pending += reads(producer)
    return result


def reads(node: ir.Node) -> list[ir.Value]:
    """Returns the values that `node` reads, from within its subgraphs too."""
    values = [v for v in node.inputs if v is not None]
    for attribute in node.attributes.values():
        bodies = (
            [attribute.as_graph()]
            if attribute.type == ir.AttributeType.GRAPH
            else list(attribute.as_graphs())
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
        for body in bodies:
            for inner in ir.traversal.RecursiveGraphIterator(body):
                values += [v for v in inner.inputs if v is not None]
    return values


def entries(seed: tuple[ir.Node, ...]) -> list[tuple[ir.Value, ...]]:
    """Returns where the ways to the nodes of `seed` part: values of equal type and shape."""
    found: list[tuple[ir.Value, ...]] = []
    seen: set[tuple[ir.Value | None, ...]] = set()
    pending: list[tuple[ir.Value | None, ...]] = list(zip(*(n.inputs for n in seed), strict=True))
    while pending:
        values = pending.pop(0)
        first = values[0]
        if values in seen or any(equal(first, v) for v in values[1:]) or any(v is None for v in values):
            continue
        seen.add(values)
        nodes = [v.producer() for v in values if v is not None]
        if all_alike(nodes) and len({v.index() for v in values if v is not None}) == 1:
            first_node = nodes[0]
            assert first_node is not None
            slots = 1 if first_node.op_type == "Reshape" else len(first_node.inputs)
            pending += [tuple(n.inputs[i] for n in nodes if n is not None) for i in range(slots)]
        elif len({(str(v.shape), str(v.dtype)) for v in values if v is not None}) == 1:
            found.append(tuple(v for v in values if v is not None))
    return found


def all_alike(nodes: Iterable[ir.Node | None]) -> bool:
    """Whether these are different nodes of one operator, with equal constants, that may take a longer batch."""
    first, *others = nodes
    if first is None or not batchwise.knows(first) or len({first, *others}) <= len(others):
        return False
    for node in others:
        if node is None or not same_operator(first, node):
            return False
        for a, b in zip(first.inputs, node.inputs, strict=True):
            if (_is_fixed(a) or _is_fixed(b)) and not equal(a, b):
                return False
    return True


def _is_fixed(value: ir.Value | None) -> bool:
    return value is None or build.array(value) is not None
