"""Float projections of one input become part of the attention that reads them.

    MultiHeadAttention(x·wq + bq, x·wk + bk, x·wv + bv) -> Attention(x, [wq wk wv], [bq bk bv])

One product in place of three, and no additions. Only after `fuse_attention`. Declined when queries, keys and
values come from different inputs, or are read elsewhere, or when a weight is quantized or computed.

Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.Attention.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgemm.rewrite import build
from edgemm.rewrite.rules.fuse_attention import DOMAIN
from edgemm.tensors import IOSpec

Array = npt.NDArray[np.float32]


def apply(model: ir.Model, io: IOSpec) -> int:
    """Fuses projections of the main graph; returns how many attention nodes took theirs in."""
    return sum(_fuse(n) for n in list(model.graph) if n.op_type == "MultiHeadAttention" and n.domain == DOMAIN)


def _fuse(node: ir.Node) -> bool:
    if len(node.inputs) > 6 or any(v is not None for v in node.inputs[3:5]):
        return False
    found = [_projection(v) for v in node.inputs[:3]]
    parts = [p for p in found if p is not None]
    if len(parts) < 3 or len({p[0] for p in parts}) > 1:
        return False
    source = parts[0][0]
    if source.shape is None or len(source.shape) != 3 or len({p[1].shape for p in parts}) > 1:
        return False
    builder = build.Builder(node)
    weight = builder.constant(np.concatenate([p[1] for p in parts], axis=1))
    bias = builder.constant(np.concatenate([p[2] for p in parts]))
    mask = [None, None, node.inputs[5]] if len(node.inputs) > 5 else []
    output = node.outputs[0]
    attributes = {"num_heads": node.attributes["num_heads"].as_int(), "scale": node.attributes["scale"].as_float()}
    fused = builder.node("Attention", [source, weight, bias, *mask], attributes, like=output, domain=DOMAIN)
    build.replace(output, fused)
    build.remove_dead(builder.graph, node)
    return True


def _projection(value: ir.Value | None) -> tuple[ir.Value, Array, Array] | None:
    """Returns (x, w, b) if `value` is x·w + b and nothing else reads it."""
    if value is None or not build.only_use(value):
        return None
    node, bias = value.producer(), None
    if node is not None and node.op_type == "Add" and node.domain == "":
        sides = [v for v in node.inputs if v is not None and build.array(v) is None]
        bias = next((a for v in node.inputs if (a := build.array(v)) is not None), None)
        if len(sides) != 1 or bias is None or not build.only_use(sides[0]):
            return None
        node = sides[0].producer()
    if node is None or node.op_type != "MatMul" or node.domain != "" or node.inputs[0] is None:
        return None
    weight = build.array(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    if bias is None:
        bias = np.zeros(weight.shape[1], np.float32)
    return (node.inputs[0], weight, bias) if bias.shape == weight.shape[1:] else None
