"""A product behind a Concat, written as a sum of products by branch, so that every branch may have its own scale.

Concat(a, b) · [A; B] + bias  =  a · A + bias + b · B
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.quant.edit import Editor, make_node
from edgemm.quant.kernels import is_plain_product
from edgemm.quant.tensors import constant_array, given, given_constant, int_attribute


def branch_sizes(node: ir.Node) -> list[int] | None:
    """Returns how many rows of its weight each branch has, or None where `node` cannot be split.

    It can be when it is a MatMul or plain Gemm with a constant weight of two axes, right behind a Concat along
    the last axis, of parts whose size there is known.
    """
    if node.op_type not in ("MatMul", "Gemm") or not is_plain_product(node):
        return None
    data, weight = given(node, 0), constant_array(given(node, 1))
    concat = data.producer()
    if concat is None or concat.op_type != "Concat" or weight is None or weight.ndim != 2:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_array(node.inputs[2]) is None:
        return None
    sizes: list[int] = []
    for value in concat.inputs:
        shape = value.shape if value is not None else None
        if shape is None or len(shape) < 1 or int_attribute(concat, "axis", 0) not in (-1, len(shape) - 1):
            return None
        last = shape[-1]
        if not isinstance(last, int):
            return None
        sizes.append(last)
    depth = weight.shape[1] if int_attribute(node, "transB", 0) else weight.shape[0]
    return sizes if sum(sizes) == depth and len(sizes) > 1 else None


def split_product(editor: Editor, node: ir.Node) -> list[ir.Node]:
    """Returns one new MatMul per branch; `node` becomes the sum of them, and keeps its output.

    Raises:
        QuantizationError: `node` cannot be split.
    """
    sizes = branch_sizes(node)
    if sizes is None:
        raise QuantizationError(
            f"node '{node.name}' ({node.op_type}): got separate scales, expected a product of a constant "
            "weight right behind a Concat along the last axis.",
            hint='take the option "scales" out of its decision',
        )
    concat = given(node, 0).producer()
    assert concat is not None
    source, weight = given_constant(node, 1)
    rows = weight.T if int_attribute(node, "transB", 0) else weight
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    name = str(node.outputs[0].name)
    parts = []
    start = 0
    for index, (branch, size) in enumerate(zip(list(concat.inputs), sizes, strict=True)):
        w = editor.shared(f"{source.name}/{len(sizes)}/{index}", np.ascontiguousarray(rows[start : start + size]))
        biased = bias is not None and index == 0
        part = make_node(
            "Gemm" if biased else "MatMul", [branch, w, bias] if biased else [branch, w], f"{name}/{index}", {}
        )
        editor.model.graph.insert_before(node, [part])
        parts.append(part)
        start += size
    editor.become(node, "Sum", [p.outputs[0] for p in parts], {})
    if not concat.outputs[0].uses() and not concat.outputs[0].is_graph_output():
        editor.model.graph.remove(concat, safe=True)
    return parts
