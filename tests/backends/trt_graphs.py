"""ONNX files for the TensorRT tests: small graphs in ONNX text, and symmetric int8 Q/DQ put into float ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from edgemm.graph import serialize
from edgemm.quant.edit import Editor
from edgemm.quant.tensors import constant_array, weight_axis


def model_of(text: str, weights: Mapping[str, np.ndarray] | None = None, opset: int = 20) -> ir.Model:
    """Returns the model of a graph in ONNX text with initializers added."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def write(model: ir.Model, folder: Path, name: str = "model") -> Path:
    """Returns the ONNX file that `model` was written to."""
    file = folder / f"{name}.onnx"
    file.write_bytes(serialize(model))
    return file


def random_weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns float32 arrays from a normal distribution of width 0.1."""
    rng = np.random.default_rng(0)
    return {name: (0.1 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def quantize(model: ir.Model, *, joins: bool = True, scale: float = 0.05) -> ir.Model:
    """Returns a copy with symmetric int8: data per tensor, weights per channel, bias float, as TensorRT wants it.

    Conv, Gemm and MatMul get Q/DQ on every input. With `joins`, a Concat gets one scale on all of its inputs, and
    an Add of two computed tensors one on its second.
    """
    model = model.clone()
    editor = Editor(model)
    pairs: dict[ir.Value, ir.Value] = {}
    s = editor.shared("activation_scale", np.float32(scale))
    z = editor.shared("activation_zero", np.int8(0))

    def pair(value: ir.Value, node: ir.Node) -> ir.Value:
        if value not in pairs:
            q = editor.before(node, "QuantizeLinear", [value, s, z], f"{value.name}/q")
            pairs[value] = editor.before(node, "DequantizeLinear", [q, s, z], f"{value.name}/dq")
        return pairs[value]

    for node in list(model.graph):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            node.replace_input_with(0, pair(node.inputs[0], node))
            array = constant_array(node.inputs[1])
            weight = pair(node.inputs[1], node) if array is None else _weight(editor, node, array)
            node.replace_input_with(1, weight)
        elif joins and node.op_type == "Concat":
            for index, value in enumerate(node.inputs):
                node.replace_input_with(index, pair(value, node))
        elif joins and node.op_type == "Add" and all(constant_array(v) is None for v in node.inputs):
            node.replace_input_with(1, pair(node.inputs[1], node))
    editor.drop_unused()
    return model


def _weight(editor: Editor, node: ir.Node, array: np.ndarray) -> ir.Value:
    axis = weight_axis(node)
    other = tuple(a for a in range(array.ndim) if a != axis)
    scales = np.maximum(np.abs(array).max(other).astype(np.float32) / 127, np.float32(2**-14))  # not 0 in float16
    shape = [-1 if a == axis else 1 for a in range(array.ndim)]
    q = np.clip(np.rint(array / scales.reshape(shape)), -127, 127).astype(np.int8)
    name = f"{node.name or node.outputs[0].name}/weight"
    inputs = [
        editor.constant(f"{name}/{n}", a)
        for n, a in (("q", q), ("s", scales), ("z", np.zeros(len(scales), np.int8)))
    ]
    dequantize = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}/dq")
    editor.model.graph.insert_before(node, [dequantize])
    return dequantize.outputs[0]


def half(model: ir.Model) -> ir.Model:
    """Returns a copy that computes in float16, between casts of its float32 inputs and outputs."""
    model = model.clone()
    graph, editor = model.graph, Editor(model)
    full, small = int(ir.DataType.FLOAT), int(ir.DataType.FLOAT16)
    for part in model.graphs():
        for value in part.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                value.const_value = _halved(value.const_value)
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in graph.all_nodes():
        if node.op_type == "Cast" and node.attributes["to"].as_int() == full:
            node.attributes["to"] = ir.AttrInt64("to", small)
        given = node.attributes.get("value") if node.op_type in ("Constant", "ConstantOfShape") else None
        if given is not None and given.as_tensor().dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", _halved(given.as_tensor()))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    first = graph[0]
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            uses = list(value.uses())
            cast = editor.before(first, "Cast", [value], f"{value.name}/half", small)
            for node, index in uses:
                node.replace_input_with(index, cast)
    for index, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.FLOAT16 and value.producer() is not None:
            name = value.name
            value.name = f"{name}/half"
            node = ir.node("Cast", [value], {"to": full}, name=f"{name}/float")
            node.outputs[0].name, node.outputs[0].shape = name, value.shape
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
    return model


def _halved(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    array = np.clip(tensor.numpy(), -65504, 65504)  # masks are as low as they can be
    return ir.tensor(array.astype(np.float16), name=tensor.name)
