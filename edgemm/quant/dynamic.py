"""Dynamic int8: integer kernels whose activation scale is computed on every call. Needs no calibration.

MatMul and Gemm become operators of the ONNX standard, which every runtime reads:

    x ─ DynamicQuantizeLinear ─┬─ xq, xz ─ MatMulInteger(·, W8) ─ Cast ─ Mul ─ Add(bias)
                               └─ xs ──────────────────── Mul(xs, W scales) ┘

ONNX Runtime fuses that into `DynamicQuantizeMatMul`, or, where several nodes read one x (query, key and value),
into a kernel each behind one common DynamicQuantizeLinear. The scale covers the whole tensor, so rows of a batch
share it. An LSTM becomes ONNX Runtime's `DynamicQuantizeLSTM`, with one weight scale per gate row.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.quant import arithmetic
from edgemm.quant.edit import MICROSOFT, Editor
from edgemm.quant.tensors import given, given_constant, int_attribute


def make_dynamic(editor: Editor, node: ir.Node) -> None:
    """Turns a MatMul, Gemm or LSTM with constant weights into its dynamic int8 form, in place."""
    if node.op_type == "LSTM":
        _lstm(editor, node)
    else:
        _matmul(editor, node)


def _matmul(editor: Editor, node: ir.Node) -> None:
    data, (source, weight) = given(node, 0), given_constant(node, 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if int_attribute(node, "transB", 0):
        weight, side = weight.T, "rows"
    else:
        side = "columns"
    prefix = f"{source.name}/{side}"
    scales = arithmetic.weight_scales(weight, 1, editor.bits)
    w = editor.shared(f"{prefix}/int8", arithmetic.quantize_weight(weight, scales, 1, editor.bits))
    s = editor.shared(f"{prefix}/scale", scales)
    quantized, scale, zero_point = _dynamic_input(editor, data)
    name = node.outputs[0].name
    product = editor.before(node, "MatMulInteger", [quantized, w, zero_point], f"{name}/int32")
    product = editor.before(node, "Cast", [product], f"{name}/product", to=int(ir.DataType.FLOAT))
    both = editor.before(node, "Mul", [scale, s], f"{name}/scale")
    if bias is None:
        editor.become(node, "Mul", [product, both], {})
    else:
        scaled = editor.before(node, "Mul", [product, both], f"{name}/scaled")
        editor.become(node, "Add", [scaled, bias], {})


def _dynamic_input(editor: Editor, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Returns quantized values, scale and zero point of `value`; one DynamicQuantizeLinear for all its readers."""
    for use in value.uses():
        if use.node.op_type == "DynamicQuantizeLinear":
            a, b, c = use.node.outputs
            return a, b, c
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}/dynamic")
    for output, suffix, dtype in zip(
        node.outputs,
        ("dynamic", "dynamic_scale", "dynamic_zero_point"),
        (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8),
        strict=True,
    ):
        output.name, output.type = f"{value.name}/{suffix}", ir.TensorType(dtype)
    editor.after_producer(value, [node])
    a, b, c = node.outputs
    return a, b, c


def _lstm(editor: Editor, node: ir.Node) -> None:
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    behind: list[ir.Value | None] = []
    for index in (1, 2):
        source, weight = given_constant(node, index)
        scales, q = arithmetic.quantize_rows(weight, editor.bits)
        inputs[index] = editor.shared(f"{source.name}/lstm/int8", q.transpose(0, 2, 1))
        behind.append(editor.shared(f"{source.name}/lstm/scale", scales[..., 0]))
        behind.append(editor.shared(f"{source.name}/lstm/zero_point", np.zeros(scales.shape[:2], np.int8)))
    node.attributes.pop("layout", None)
    editor.become(node, "DynamicQuantizeLSTM", [*inputs, *behind], domain=MICROSOFT)
