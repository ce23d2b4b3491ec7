"""A graph that was planned for TensorRT, made quick for a CPU. Its answers differ by the order of sums at most.

ONNX Runtime on a CPU, with graph optimizations off, dequantizes every weight in every call, and casts every weight
in half precision to float32, because it has no kernels for it. Both are done here once:

    DequantizeLinear(constant)                  ─▶  the constant, in the type that it gives
    Conv(x16, w16) ─▶ y16                       ─▶  Cast(Conv(Cast(x16), w32)) ─▶ y16, where w32 holds w16's values

A product of half precision is so summed in float32 and rounded once, as tensor cores do.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.quant.edit import Editor, make_node
from edgemm.quant.tensorrt.formats import FORMATS
from edgemm.quant.tensors import RECURRENT, WEIGHTED, constant_array, int_attribute

_QUANTIZED = frozenset(f.dtype.numpy() for f in FORMATS.values())

LARGE = 4096
"""Elements from which on a weight in half precision is kept as float32."""


def rehearse(model: ir.Model) -> ir.Model:
    """Returns a copy of a planned graph that rounds as it does and takes less time on a CPU."""
    model = model.clone()
    editor = Editor(model)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and (array := _dequantized(node)) is not None:
            value = node.outputs[0]
            name = str(value.name)
            value.name = f"{name}/by-node"
            value.replace_all_uses_with(editor.constant(name, array))
            model.graph.remove(node, safe=True)
    for node in list(model.graph):
        if node.op_type in (*WEIGHTED, *RECURRENT) and _large_half(node):
            _compute_in_float(editor, node)
    editor.drop_unused()
    return model


def _dequantized(node: ir.Node) -> np.ndarray | None:
    """Returns what a DequantizeLinear of constants gives (ONNX: (x − 0) · scale, along `axis` and by blocks)."""
    values, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
    if values is None or scale is None or values.dtype not in _QUANTIZED or node.outputs[0].is_graph_output():
        return None
    block = int_attribute(node, "block_size", 0)
    if block:
        factors = np.repeat(scale.astype(np.float32), block, axis=int_attribute(node, "axis", 1))
    elif scale.ndim:
        shape = [1] * values.ndim
        shape[int_attribute(node, "axis", 1)] = -1
        factors = scale.astype(np.float32).reshape(shape)
    else:
        factors = scale.astype(np.float32)
    product: np.ndarray = values.astype(np.float32) * factors
    return product.astype(scale.dtype)


def _large_half(node: ir.Node) -> bool:
    arrays = (constant_array(v) for v in node.inputs)
    return any(a is not None and a.dtype == np.float16 and a.size >= LARGE for a in arrays)


def _compute_in_float(editor: Editor, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        array = constant_array(value)
        if array is not None and array.dtype == np.float16:
            wide = editor.shared(f"{value.name}/wide", array.astype(np.float32))
            node.replace_input_with(index, wide)
        elif array is None and value.dtype == ir.DataType.FLOAT16:
            cast = make_node("Cast", [value], f"{node.name}/wide/{index}", {"to": int(ir.DataType.FLOAT)})
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
            editor.model.graph.insert_before(node, [cast])
            node.replace_input_with(index, cast.outputs[0])
    for value in node.outputs:
        if value.dtype != ir.DataType.FLOAT16 or value.is_graph_output():
            continue
        uses = list(value.uses())
        cast = make_node("Cast", [value], f"{value.name}/narrow", {"to": int(ir.DataType.FLOAT16)})
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), value.shape
        value.type = ir.TensorType(ir.DataType.FLOAT)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        node.append([cast])
