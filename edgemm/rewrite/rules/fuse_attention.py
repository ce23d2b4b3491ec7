"""Attention written out becomes ONNX Runtime's operator: the projections stay, all between them is one node.

    Softmax(Q·Kᵀ·s + m)·V, Q K V in heads -> MultiHeadAttention(q, k, v, attention_bias=m, scale=s)

for q, k, v of [batch, length, heads·size] and m of [batch or 1, heads or 1, length, length]. How the heads were
cut out and put back does not matter (see `layout`). The scale may be on the scores, on Q, on K, or on both.
Declined when scores or probabilities are read elsewhere or quantized, when the product is not four-dimensional
with the batch in front, and when a head size differs between queries, keys and values.

Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MultiHeadAttention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, dims, layout
from edgemm.rewrite.dims import ONE, Dim
from edgemm.tensors import IOSpec

DOMAIN = "com.microsoft"


@dataclass(slots=True)
class _Heads:
    """An operand: [batch, heads, length, size] as factors of its source, and what it is multiplied by."""

    found: layout.Layout
    scale: float

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.found.shape


def apply(model: ir.Model, io: IOSpec | None = None) -> int:
    """Fuses attention in the main graph; returns how many."""
    biases: dict[ir.Value, ir.Value] = {}
    count = sum(_fuse(n, biases) for n in list(model.graph) if n.op_type == "Softmax" and n.domain == "")
    if count:
        model.graph.opset_imports.setdefault(DOMAIN, 1)
    return count


def _fuse(softmax: ir.Node, biases: dict[ir.Value, ir.Value]) -> bool:
    probabilities = softmax.outputs[0]
    rank = len(probabilities.shape or ())
    if rank != 4 or softmax.attributes.get_int("axis", -1) not in (-1, 3) or not build.only_use(probabilities):
        return False
    weighted = build.reader(probabilities)
    if weighted.op_type != "MatMul" or weighted.inputs[0] is not probabilities:
        return False
    found = _scores(softmax.inputs[0])
    if found is None:
        return False
    scores, bias, scale = found
    q, k, v = _heads(scores.inputs[0]), _heads(scores.inputs[1]), _heads(weighted.inputs[1])
    if q is None or k is None or v is None or v.scale != 1.0:
        return False
    batch, heads, length, size = q.shape
    total = k.shape[3]
    if heads.fixed is None or size.fixed is None:
        return False
    if k.shape != (batch, heads, size, total) or v.shape != (batch, heads, total, size):
        return False
    builder = build.Builder(softmax)
    mask = None
    if bias is not None and not _fits(bias, (batch, heads, length, total)):
        return False
    operands = [
        layout.arrange(q.found, (0,), (2,), (1, 3)),
        layout.arrange(k.found, (0,), (3,), (1, 2)),
        layout.arrange(v.found, (0,), (2,), (1, 3)),
    ]
    joined = (batch, length, heads * size)
    if any(layout.steps(o) is None for o in operands) or dims.target(joined, (batch, length, heads, size)) is None:
        return False
    if bias is not None:
        mask = biases.get(bias)
        if mask is None or mask.producer() is None or mask.producer() not in builder.graph:
            mask = _bias(bias, length, build.Builder(_after(bias, softmax)))
            biases[bias] = mask
    query, key, value = (layout.emit(o, builder) for o in operands)
    output = weighted.outputs[0]
    fused = builder.node(
        "MultiHeadAttention",
        [query, key, value, None, None, *([mask] if mask is not None else [])],
        {"num_heads": heads.size, "scale": float(scale * q.scale * k.scale)},
        like=output,
        shape=joined,
        domain=DOMAIN,
    )
    split = builder.reshape(fused, joined, (batch, length, heads, size))
    perm = builder.node(
        "Transpose", [split], {"perm": [0, 2, 1, 3]}, like=output, shape=(batch, heads, length, size)
    )
    build.replace(output, perm)
    build.remove_dead(builder.graph, weighted)
    return True


def _scores(value: ir.Value | None) -> tuple[ir.Node, ir.Value | None, float] | None:
    """Returns the product Q·Kᵀ above `value`, the mask that is added to it, and the factor between."""
    bias, scale = None, 1.0
    while value is not None and build.only_use(value) and (node := value.producer()) is not None:
        if node.op_type == "MatMul" and node.domain == "":
            return node, bias, scale
        if node.op_type == "Add" and bias is None and scale == 1.0:
            sides = [v for v in node.inputs if v is not None and _is_product(v)]
            if len(sides) != 1:
                return None
            value = sides[0]
            bias = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
        elif (factor := _factor(node)) is not None:
            value, scale = factor[0], scale * factor[1]
        else:
            return None
    return None


def _is_product(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and (factor := _factor(node)) is not None:
        node = factor[0].producer()
    return node is not None and node.op_type == "MatMul"


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Returns (x, c) for Mul(x, c), Mul(c, x) and Div(x, 1/c)."""
    if node.domain != "" or node.op_type not in ("Mul", "Div"):
        return None
    a, b = node.inputs
    number = build.scalar(b)
    if a is not None and number is not None:
        return a, number if node.op_type == "Mul" else 1.0 / number
    number = build.scalar(a)
    return (b, number) if node.op_type == "Mul" and b is not None and number is not None else None


def _heads(value: ir.Value | None) -> _Heads | None:
    """Returns the four dimensions of `value` as factors of the value that the chain above it begins with."""
    chain: list[ir.Node] = []
    scale = 1.0
    while value is not None and (node := value.producer()) is not None:
        factor = _factor(node)
        if factor is not None:
            value, scale = factor[0], scale * factor[1]
        elif layout.is_layout(node):
            chain.append(node)
            value = node.inputs[0]
        else:
            break
    found = layout.start(value) if value is not None else None
    for node in reversed(chain):
        found = layout.step(found, node) if found is not None else None
    return _Heads(found, scale) if found is not None and len(found.groups) == 4 else None


def _fits(bias: ir.Value, full: tuple[Dim, ...]) -> bool:
    shape = dims.of(bias)
    if shape is None or len(shape) != 4 or shape[3] != full[3] or bias.dtype != ir.DataType.FLOAT:
        return False
    if shape[2] != full[2] and full[2].fixed is None:
        return False
    return all(d in (ONE, f) for d, f in zip(shape, full, strict=True))


def _after(bias: ir.Value, otherwise: ir.Node) -> ir.Node:
    """Returns the first node that reads `bias`: what is made of it once serves the layers behind as well."""
    readers = {u.node for u in bias.uses()}
    return next((n for n in otherwise.graph or () if n in readers), otherwise)


def _bias(bias: ir.Value, length: Dim, builder: build.Builder) -> ir.Value:
    """Returns the mask with one row per query, which the operator does not repeat by itself."""
    shape = dims.of(bias)
    assert shape is not None
    if shape[2] == length:
        return bias
    full = (shape[0], shape[1], length, shape[3])
    found = build.array(bias)
    if found is not None:
        return builder.constant(np.repeat(found, length.size, axis=2))
    return builder.node("Expand", [bias, builder.integers([1, 1, length.size, 1])], like=bias, shape=full)
