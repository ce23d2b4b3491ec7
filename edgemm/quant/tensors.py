"""What the planner, the collector and the applier all have to know about ONNX operators and tensor names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with a weight at input 1 that can be int8."""

MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators whose output holds only values of input 0. ONNX Runtime runs them on uint8 of their own accord."""

RECURRENT = ("LSTM", "GRU", "RNN")

JOINS = ("Add", "Concat")
"""Operators with an integer kernel that reads several scales and writes one."""


def table_key(stage: str, tensor: str) -> str:
    """Returns a tensor's key in a CalibrationTable: `stage:tensor`. Stages may repeat each other's names."""
    return f"{stage}:{tensor}"


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Returns the array of an initializer or a Constant node; None for anything that is computed or fed."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def given(node: ir.Node, index: int) -> ir.Value:
    """Returns an input that `node` must have.

    Raises:
        QuantizationError: It has none.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise QuantizationError(
            f"node '{node.name}' ({node.op_type}) has no input {index}.", hint="check the model: edgemm doctor"
        )
    return value


def given_constant(node: ir.Node, index: int) -> tuple[ir.Value, np.ndarray]:
    """Returns a constant input that `node` must have, with its array.

    Raises:
        QuantizationError: It has none, or it is computed.
    """
    value = given(node, index)
    array = constant_array(value)
    if array is None:
        raise QuantizationError(
            f"node '{node.name}' ({node.op_type}): input {index} ('{value.name}') is not a constant.",
            hint="plan again; a plan may only quantize nodes with constant weights",
        )
    return value, array


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs that carry activations and get a scale when `node` is int8."""
    if node.op_type in WEIGHTED:
        return [v for v in node.inputs[:1] if v is not None]
    return [v for v in node.inputs if v is not None]


def activated_output(node: ir.Node) -> ir.Value:
    """Returns the tensor behind `node` and a Relu or Clip that is its only reader: the one that gets the scale."""
    value = node.outputs[0]
    if node.op_type not in ("Conv", "Gemm", "Add"):
        return value
    uses = list(value.uses())
    if len(uses) == 1 and not value.is_graph_output() and uses[0].node.op_type in ("Relu", "Clip"):
        reader = uses[0].node
        if uses[0].idx == 0 and all(constant_array(v) is not None for v in reader.inputs[1:] if v is not None):
            return reader.outputs[0]
    return value


def output_to_scale(node: ir.Node) -> ir.Value | None:
    """Returns the tensor behind an int8 `node` that must have Q/DQ for an integer kernel, or None.

    Gemm and MatMul can give float. Only a Gemm whose Relu or Clip is read inside the graph needs Q/DQ behind that:
    otherwise ONNX Runtime fuses the activation into a float Gemm and the weight is dequantized on every call.
    """
    if node.op_type == "MatMul":
        return None
    value = activated_output(node)
    if node.op_type == "Gemm" and (value is node.outputs[0] or not value.uses()):
        return None
    return value


def weight_axis(node: ir.Node) -> int:
    """Returns the output-channel axis of the weight at input 1."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return 1  # MatMul: placement takes rank-2 weights only


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Returns an integer attribute of `node`."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def named_nodes(graph: ir.Graph) -> dict[str, ir.Node]:
    """Returns the nodes in graph order under unique names.

    A node without a name, or with one that another node has, goes by the name of its first output.
    """
    counted: dict[str, int] = {}
    for node in graph:
        counted[node.name or ""] = counted.get(node.name or "", 0) + 1
    return {
        str(node.name if node.name and counted[node.name] == 1 else node.outputs[0].name): node for node in graph
    }


def is_quantized_graph(model: ir.Model) -> bool:
    """True when the graph has Q/DQ or integer nodes already."""
    return any(
        node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulIntegerToFloat")
        or node.op_type.startswith(
            ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantize")
        )
        for node in model.graph.all_nodes()
    )
