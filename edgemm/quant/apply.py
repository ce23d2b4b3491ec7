"""A plan carried out: Q/DQ around what the plan made int8, weights stored as int8. Decides nothing itself.

    x ─ Q ─ DQ ─ Conv ─ Relu ─ Q ─ DQ ─ Conv ─ Q ─ DQ ─ Add ─ Q ─ DQ ...
             W8 ─ DQ ┘

Every tensor gets at most one Q/DQ pair, however many nodes read it. Where the pair goes:

- in front of each int8 node: on every data input;
- behind Conv, Add and Concat: ONNX Runtime turns
  `DQ ─ op ─ Q` into one integer kernel only if Q is the op's sole reader, so every reader, a graph output
  included, reads the DQ. A following Relu or Clip stays in between; its range is in the scale, and ONNX Runtime
  removes it;
- not behind MatMul and Gemm: their kernels can give float, which is more exact and no slower (one exception:
  see `output_to_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.partition import Stage
from edgemm.quant import arithmetic
from edgemm.quant.plan import INT8, Decision, QuantPlan
from edgemm.quant.table import CalibrationTable, TensorRange
from edgemm.quant.tensors import (
    MOVES,
    WEIGHTED,
    constant_array,
    data_inputs,
    named_nodes,
    output_to_scale,
    table_key,
    weight_axis,
)


@dataclass(frozen=True, slots=True)
class QuantizedStage:
    """A stage with its quantized graph. No Stage, so that quantizing it again does not type-check.

    Attributes:
        stage: The float stage.
        model: Its Q/DQ graph; names and dtypes of inputs and outputs are the stage's own.
        decisions: The part of the plan that was carried out.
    """

    stage: Stage
    model: ir.Model
    decisions: tuple[Decision, ...]


def quantize_stage(stage: Stage, plan: QuantPlan, table: CalibrationTable) -> QuantizedStage:
    """Returns `stage` with its part of `plan` carried out.

    Raises:
        QuantizationError: As for `apply_plan`.
    """
    return QuantizedStage(stage, apply_plan(stage, plan, table), plan.stage(stage.name))


def apply_plan(stage: Stage, plan: QuantPlan, table: CalibrationTable) -> ir.Model:
    """Returns a new graph of `stage` in which every int8 decision of `plan` is Q/DQ; the stage is not changed.

    Names, dtypes and order of the graph's inputs and outputs stay. Equal arguments give equal bytes.

    Raises:
        QuantizationError: The plan names a node that the stage lacks, or a tensor without a calibrated range.
    """
    model = stage.model.clone()
    chosen = [d for d in plan.stage(stage.name) if d.precision == INT8]
    nodes = named_nodes(model.graph)
    for decision in chosen:
        if decision.node not in nodes:
            raise QuantizationError(
                f"the plan quantizes node '{decision.node}' of stage '{stage.name}', which has no such node.",
                hint="the plan was made for another model or export; plan again",
            )
    if chosen:
        editor = _Editor(stage.name, model, table, int(plan.calibration.get("weight_bits", 8)))
        editor.run([nodes[d.node] for d in chosen])
    return model


@dataclass(slots=True)
class _Pair:
    """One tensor's Q/DQ."""

    scale: arithmetic.ActivationScale
    quantize: ir.Node
    dequantized: ir.Value


@dataclass(slots=True)
class _Editor:
    """Edits one graph in place."""

    stage: str
    model: ir.Model
    table: CalibrationTable
    bits: int
    pairs: dict[ir.Value, _Pair] = field(default_factory=dict)
    weights: dict[tuple[str, int, bytes], ir.Value] = field(default_factory=dict)

    def run(self, nodes: list[ir.Node]) -> None:
        behind = [value for n in nodes if (value := output_to_scale(n)) is not None]
        front = [value for n in nodes for value in data_inputs(n)]
        readers = {n: list(enumerate(data_inputs(n))) for n in nodes}
        scaled = list(dict.fromkeys([*front, *behind]))
        for value in scaled:
            self._make_pair(value, self._range(value, scaled))
        for value in dict.fromkeys(behind):
            self._redirect_all(value)
        for node in nodes:
            for index, value in readers[node]:
                node.replace_input_with(index, self.pairs[value].dequantized)
            if node.op_type in WEIGHTED:
                self._quantize_weight(node, self.pairs[readers[node][0][1]])
        self._drop_unused()

    def _make_pair(self, value: ir.Value, value_range: TensorRange) -> None:
        scale = arithmetic.activation_scale(value_range)
        s = self._constant(f"{value.name}/scale", np.asarray(scale.scale, np.float32))
        z = self._constant(f"{value.name}/zero_point", np.asarray(scale.zero_point, np.uint8))
        quantize = _node("QuantizeLinear", [value, s, z], f"{value.name}/quantized", {})
        dequantize = _node("DequantizeLinear", [quantize.outputs[0], s, z], f"{value.name}/dequantized", {})
        quantize.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        quantize.outputs[0].shape = value.shape
        dequantize.outputs[0].type, dequantize.outputs[0].shape = value.type, value.shape
        producer = value.producer()
        if producer is not None:
            producer.append([quantize, dequantize])
        else:
            self.model.graph.insert_before(self.model.graph[0], [quantize, dequantize])
        self.pairs[value] = _Pair(scale, quantize, dequantize.outputs[0])

    def _range(self, value: ir.Value, scaled: list[ir.Value]) -> TensorRange:
        """The tensor's range; behind nodes that only move values, that of the scaled tensor they read.

        Equal scales on both sides let ONNX Runtime move the integers.
        """
        source, producer = value, value.producer()
        while producer is not None and producer.op_type in MOVES and producer.inputs[0] is not None:
            source = producer.inputs[0]
            producer = source.producer()
            if source in scaled:
                value = source
        found = self.table.ranges.get(table_key(self.stage, str(value.name)))
        if found is None:
            raise QuantizationError(
                f"stage '{self.stage}': no calibrated range for tensor '{value.name}'.",
                hint="calibrate with this plan's graph; the table was made for another one",
            )
        return found

    def _redirect_all(self, value: ir.Value) -> None:
        pair = self.pairs[value]
        for node, index in list(value.uses()):
            if node is not pair.quantize:
                node.replace_input_with(index, pair.dequantized)
        outputs = self.model.graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                name = value.name
                value.name, pair.dequantized.name = f"{name}/float", name
                outputs[index] = pair.dequantized

    def _quantize_weight(self, node: ir.Node, data: _Pair) -> None:
        source = node.inputs[1]
        weight = constant_array(source)
        if source is None or weight is None:
            raise QuantizationError(
                f"stage '{self.stage}': the plan quantizes '{node.name}', whose weight is not a constant.",
                hint="plan again; an edited plan may only name nodes with constant weights",
            )
        axis = weight_axis(node)
        scales = arithmetic.weight_scales(weight, axis, self.bits)
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = constant_array(bias_value)
        if bias is not None:
            flat = np.broadcast_to(bias.ravel(), scales.shape)
            scales = arithmetic.widen_for_bias(scales, flat, data.scale.scale)
        key = (str(source.name), axis, scales.tobytes())
        if key not in self.weights:
            q = arithmetic.quantize_weight(weight, scales, axis, self.bits)
            suffix = (
                f"/{sum(k[0] == key[0] for k in self.weights)}"
                if any(k[0] == key[0] for k in self.weights)
                else ""
            )
            self.weights[key] = self._dequantized(f"{source.name}{suffix}", q, scales, axis, node)
        node.replace_input_with(1, self.weights[key])
        if bias_value is not None and bias is not None:
            product = (scales * data.scale.scale).astype(np.float32)
            product = np.maximum(product, np.finfo(np.float32).tiny)
            q = arithmetic.quantize_bias(np.broadcast_to(bias.ravel(), scales.shape), product)
            node.replace_input_with(2, self._dequantized(f"{node.name}/{bias_value.name}", q, product, 0, node))

    def _dequantized(self, name: str, q: np.ndarray, scales: np.ndarray, axis: int, before: ir.Node) -> ir.Value:
        inputs = [
            self._constant(f"{name}/{q.dtype.name}", q),
            self._constant(f"{name}/scale", scales),
            self._constant(f"{name}/zero_point", np.zeros(scales.shape, q.dtype)),
        ]
        node = _node("DequantizeLinear", inputs, f"{name}/dequantized", {"axis": axis})
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(q.shape)
        self.model.graph.insert_before(self.model.graph[0], [node])
        return node.outputs[0]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value

    def _drop_unused(self) -> None:
        graph = self.model.graph
        for node in reversed(list(graph)):
            if node.op_type == "Constant" and not any(o.uses() or o.is_graph_output() for o in node.outputs):
                graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def _node(op: str, inputs: list[ir.Value], output: str, attributes: dict[str, int]) -> ir.Node:
    node = ir.node(op, inputs, attributes, name=output)
    node.outputs[0].name = output
    return node
