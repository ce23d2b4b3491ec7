"""Weight-only quantization: weights in 8 or 4 bits, activations float. Needs no calibration.

Three forms, chosen by operator and size (`Decision.options["form"]` overrides):

- `"blocks"`: `MatMulNBits`, one scale per block of a column, for MatMul and Gemm whose time is that of reading the
  weights. `accuracy_level` 4 lets the kernel quantize each row of the input by blocks for an int8 product.
- `"stored"`: `Cast(W8) · scales` in front of any operator. Runtimes fold it when the file is opened: a quarter of
  the bytes on disk, the speed and memory of float.
- `"rows"`: an embedding table as int8 with one scale per row, both gathered; 4 bits by `GatherBlockQuantized`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.quant import arithmetic, kernels
from edgemm.quant.edit import MICROSOFT, Editor
from edgemm.quant.plan import WEIGHT4
from edgemm.quant.tensors import RECURRENT, constant_array, given, given_constant, int_attribute

BLOCKS, STORED, ROWS = "blocks", "stored", "rows"

MIN_BLOCK_WEIGHTS = 65536
"""A smaller MatMul does not wait for its weights."""

BLOCK_SIZE = 32
BLOCK_SIZES = (16, 32, 64, 128, 256)


def make_weight_only(editor: Editor, node: ir.Node, precision: str, options: Mapping[str, Any]) -> None:
    """Turns `node` into its weight-only form, in place.

    Args:
        editor: Of the node's graph.
        node: A node that `kernels.verdict` lists `precision` for.
        precision: `"int8-weight"` or `"int4-weight"`.
        options: `form` and `block_size`, where the plan says so.

    Raises:
        QuantizationError: An option that the node's operator does not have.
    """
    bits = 4 if precision == WEIGHT4 else 8
    forms = _forms(node, bits)
    form = options.get("form", forms[0])
    if form not in forms:
        raise QuantizationError(
            f"node '{node.name}' ({node.op_type}): got form '{form}' for {precision}, "
            f"expected {' or '.join(forms)}.",
            hint="leave the option out for the default",
        )
    block = options.get("block_size", BLOCK_SIZE)
    if block not in BLOCK_SIZES:
        raise QuantizationError(
            f"node '{node.name}': got block size {block}, expected one of {', '.join(map(str, BLOCK_SIZES))}.",
            hint="leave the option out for the default",
        )
    if form == BLOCKS:
        _blocks(editor, node, bits, block)
    elif form == STORED:
        _stored(editor, node)
    elif bits == 4:
        _gather_blocks(editor, node)
    else:
        _gather_rows(editor, node)


def _forms(node: ir.Node, bits: int) -> tuple[str, ...]:
    """Returns the forms of a node, the default first."""
    if node.op_type == "Gather":
        return (ROWS,)
    weight = constant_array(node.inputs[1])
    if node.op_type not in ("MatMul", "Gemm") or weight is None or weight.ndim != 2 or not kernels.has_rows(node):
        return (STORED,)
    if bits == 4:
        return (BLOCKS,)
    if not kernels.is_plain_product(node):
        return (STORED,)
    return (BLOCKS, STORED) if weight.size >= MIN_BLOCK_WEIGHTS else (STORED, BLOCKS)


def _blocks(editor: Editor, node: ir.Node, bits: int, block: int) -> None:
    data, (source, weight) = given(node, 0), given_constant(node, 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    transposed = bool(int_attribute(node, "transB", 0))
    rows = weight if transposed else weight.T  # [N, K]
    columns, depth = rows.shape
    q, scales, zero_points = arithmetic.quantize_blocks(rows, bits, block)
    prefix = f"{source.name}/{'rows' if transposed else 'columns'}/int{bits}x{block}"
    inputs: list[ir.Value | None] = [
        data,
        editor.shared(prefix, q),
        editor.shared(f"{prefix}/scale", scales),
        editor.shared(f"{prefix}/zero_point", zero_points),
    ]
    array = constant_array(bias)
    if bias is not None and array is not None:
        flat = np.broadcast_to(array.ravel(), (columns,)).astype(np.float32)
        inputs += [None, editor.shared(f"{bias.name}/{columns}", flat)]
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    editor.become(node, "MatMulNBits", inputs, attributes, MICROSOFT)


def _stored(editor: Editor, node: ir.Node) -> None:
    indices = (1, 2) if node.op_type in RECURRENT else (1,)
    for index in indices:
        source, weight = given_constant(node, index)
        axes = _stored_axes(node, weight)
        scales, q = arithmetic.quantize_over(weight, axes)
        name = f"{source.name}/stored{''.join(map(str, axes))}"
        node.replace_input_with(index, editor.unfolded(name, q, scales))


def _stored_axes(node: ir.Node, weight: np.ndarray) -> tuple[int, ...]:
    """Returns the axes that one scale covers."""
    if node.op_type in RECURRENT:
        return (weight.ndim - 1,)
    if node.op_type == "Conv":
        return tuple(range(1, weight.ndim))
    if node.op_type == "ConvTranspose":
        return (0, *range(2, weight.ndim))
    return (weight.ndim - 1,) if int_attribute(node, "transB", 0) else (weight.ndim - 2,)


def _gather_rows(editor: Editor, node: ir.Node) -> None:
    (source, table), indices = given_constant(node, 0), given(node, 1)
    scales, q = arithmetic.quantize_rows(table)
    name = node.outputs[0].name
    rows = editor.before(node, "Gather", [editor.shared(f"{source.name}/rows/int8", q), indices], f"{name}/int8")
    scale = editor.before(
        node, "Gather", [editor.shared(f"{source.name}/rows/scale", scales), indices], f"{name}/scale"
    )
    rows = editor.before(node, "Cast", [rows], f"{name}/rows", to=int(ir.DataType.FLOAT))
    editor.become(node, "Mul", [rows, scale], {})


def _gather_blocks(editor: Editor, node: ir.Node) -> None:
    (source, table), indices = given_constant(node, 0), given(node, 1)
    block = 32 if table.shape[1] % 32 == 0 else 16
    q, scales, zero_points = arithmetic.quantize_blocks(table, 4, block)
    prefix = f"{source.name}/rows/int4x{block}"
    inputs = [
        editor.shared(prefix, q.reshape(table.shape[0], -1)),
        indices,
        editor.shared(f"{prefix}/scale", scales),
        editor.shared(f"{prefix}/zero_point", zero_points),
    ]
    attributes = {"bits": 4, "block_size": block, "quantize_axis": 1, "gather_axis": 0}
    editor.become(node, "GatherBlockQuantized", inputs, attributes, MICROSOFT)
