"""Convolutions that read the same values with windows of one shape are one, with the channels of all.

    Conv(x, w), Conv(x, v)             -> Split(Conv(x, [w; v]))            along the channels
    f(Conv(x, w)), f(Conv(x, v))       -> Split(f(Conv(x, [w; v])))         for f that takes each element by itself
    Concat(Conv(x, w), …, Conv(x, v))  -> Conv(x, [w; …; v])                for all of it in this order

The windows of x are then laid out once and met by one larger product. (The real and the imaginary part of a
spectrogram are such a pair.) Declined for windows of one element, whose layout is x itself, for groups, and where
a convolution or a pooling over two axes reads a part: ONNX Runtime would leave its blocked layout for the Split.

MatMuls of one input stay apart: the copies of a Split along the last axis cost more than one product saves.
Projections of attention are different: see `fuse_projections`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, twins
from edgemm.rewrite.batchwise import POINTWISE
from edgemm.tensors import IOSpec

_BLOCKED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})

_BLOCKED_RANK = 4


def apply(model: ir.Model, io: IOSpec) -> int:
    """Merges convolutions of the main graph; returns how many went."""
    graph, count = model.graph, 0
    opset = graph.opset_imports.get("", 1)
    for node in list(graph):
        if node.graph is graph and _fits(node):
            source = node.inputs[0]
            assert source is not None
            readers = {u.node for u in source.uses() if u.idx == 0}
            nodes = [n for n in graph if n in readers and (n is node or _alike(node, n))]
            if len(nodes) > 1:
                count += _merge(nodes, opset)
    return count


def _fits(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain != "" or node.attributes.get_int("group", 1) != 1:
        return False
    weight = build.array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.dtype != np.float32 or (bias is not None and build.array(bias) is None):
        return False
    return bool(np.prod(weight.shape[2:]) > 1)


def _alike(one: ir.Node, other: ir.Node) -> bool:
    if other.graph is not one.graph or not _fits(other):
        return False
    kernels = [build.array(n.inputs[1]) for n in (one, other)]
    if kernels[0] is None or kernels[1] is None or kernels[0].shape[1:] != kernels[1].shape[1:]:
        return False
    names = one.attributes.keys() | other.attributes.keys()
    return all(
        name in one.attributes
        and name in other.attributes
        # a list or a number
        and one.attributes[name].value == other.attributes[name].value
        for name in names
    )


def _merge(nodes: Sequence[ir.Node], opset: int) -> int:
    chains = _chains(nodes)
    values = [chain[-1].outputs[0] for chain in chains]
    concat = _concat(values)
    rank = len(nodes[0].outputs[0].shape or ())
    readers = [u.node for v in values for u in v.uses()]
    if concat is None and (not rank or (rank == _BLOCKED_RANK and any(n.op_type in _BLOCKED for n in readers))):
        return 0
    builder = build.Builder(nodes[0])
    weights = [np.asarray(build.array(n.inputs[1])) for n in nodes]
    biases = [build.array(n.inputs[2]) if len(n.inputs) > 2 else None for n in nodes]
    inputs = [nodes[0].inputs[0], builder.constant(np.concatenate(weights))]
    if any(b is not None for b in biases):
        full = [np.zeros(len(w), w.dtype) if b is None else b for b, w in zip(biases, weights, strict=True)]
        inputs.append(builder.constant(np.concatenate(full)))
    sizes = [len(w) for w in weights]
    attributes = dict(nodes[0].attributes)
    output = nodes[0].outputs[0]
    shape = list(output.shape) if output.shape is not None else []
    whole = builder.node("Conv", inputs, {a.name: a.value for a in attributes.values()}, like=output)
    whole.shape = ir.Shape([sum(sizes) if i == 1 else d for i, d in enumerate(shape)]) if shape else None
    for step in chains[0][1:]:
        given = [whole if v is step.inputs[0] else v for v in step.inputs]
        kept = {a.name: a.value for a in step.attributes.values()}
        whole = builder.node(step.op_type, given, kept, like=whole)
        whole.type = step.outputs[0].type
    if concat is not None:
        build.replace(concat.outputs[0], whole)
        build.remove_dead(builder.graph, concat)
        return len(nodes) - 1
    lengths = [builder.integers(sizes)] if opset >= 13 else []
    axis: dict[str, Any] = {"axis": 1} if opset >= 13 else {"axis": 1, "split": sizes}
    split = ir.node("Split", [whole, *lengths], axis, num_outputs=len(nodes), name=f"{whole.name}__parts")
    split.metadata_props.update(nodes[0].metadata_props)
    builder.graph.insert_before(nodes[0], split)
    for number, (value, part) in enumerate(zip(values, split.outputs, strict=True)):
        part.name, part.type, part.shape = f"{whole.name}__part{number}", value.type, value.shape
        build.replace(value, part)
        build.remove_dead(builder.graph, chains[number][-1])
    return len(nodes) - 1


def _chains(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Returns each convolution with what the same happens to all of them, element by element."""
    chains = [[n] for n in nodes]
    while all(build.only_use(c[-1].outputs[0]) for c in chains):
        readers = [build.reader(c[-1].outputs[0]) for c in chains]
        first = readers[0]
        if len(set(readers)) < len(readers) or first.op_type not in POINTWISE or not twins.all_alike(readers):
            break
        others = [build.scalar(v) for v in first.inputs[1:] if v is not None]
        if first.inputs[0] is not chains[0][-1].outputs[0] or any(o is None for o in others):
            break
        for chain, reader in zip(chains, readers, strict=True):
            chain.append(reader)
    return chains


def _concat(values: Sequence[ir.Value]) -> ir.Node | None:
    """Returns the node that puts exactly these values together along the channels."""
    if not all(build.only_use(v) for v in values):
        return None
    node = build.reader(values[0])
    same = node.op_type == "Concat" and list(node.inputs) == list(values)
    return node if same and node.attributes.get_int("axis", 0) == 1 else None
