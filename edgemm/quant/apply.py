"""A plan carried out: Q/DQ around what the plan made int8, weights stored as int8. Decides nothing itself.

Dynamic int8 and weight-only nodes are the matter of `dynamic` and `weight_only`. Static int8 is done here:

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

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.partition import Stage
from edgemm.quant import arithmetic
from edgemm.quant.dynamic import make_dynamic
from edgemm.quant.edit import Editor, make_node
from edgemm.quant.joins import SCALES, SEPARATE, SHARED
from edgemm.quant.kernels import verdict
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8, WEIGHT4, WEIGHT8, Decision, QuantPlan
from edgemm.quant.split import split_product
from edgemm.quant.table import CalibrationTable, TensorRange
from edgemm.quant.tensors import (
    JOINS,
    MOVES,
    WEIGHTED,
    constant_array,
    data_inputs,
    given_constant,
    named_nodes,
    output_to_scale,
    table_key,
    weight_axis,
)
from edgemm.quant.weight_only import make_weight_only


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
    """Returns a new graph of `stage` with its decisions of `plan` carried out; the stage is not changed.

    Names, dtypes and order of the graph's inputs and outputs stay. Equal arguments give equal bytes.

    Raises:
        QuantizationError: The plan names a node that the stage lacks, a precision that the node has no kernel
            for, an option that it does not have, or a tensor without a calibrated range.
    """
    model = stage.model.clone()
    chosen = [d for d in plan.stage(stage.name) if d.precision != FLOAT]
    if not chosen:
        return model
    nodes = named_nodes(model.graph)
    for decision in chosen:
        _check(decision, nodes)
    editor = Editor(model, int(plan.calibration.get("weight_bits", 8)))
    static = [node for d in chosen if d.precision == INT8 for node in _separated(editor, d, nodes[d.node])]
    if static:
        _StaticEditor(stage.name, editor, table).run(static)
    for decision in chosen:
        if decision.precision == DYNAMIC:
            make_dynamic(editor, nodes[decision.node])
        elif decision.precision in (WEIGHT8, WEIGHT4):
            make_weight_only(editor, nodes[decision.node], decision.precision, decision.options)
    editor.drop_unused()
    return model


def _check(decision: Decision, nodes: Mapping[str, ir.Node]) -> None:
    where = decision.where
    node = decision.node_in(nodes)
    found = verdict(node)
    listed = found.alternatives if found is not None else (INT8, FLOAT) if node.op_type in JOINS else (FLOAT,)
    if decision.precision not in listed:
        raise QuantizationError(
            f"node {where} ({node.op_type}): got precision '{decision.precision}', expected {' or '.join(listed)}"
            + (f"; {found.reason}." if found is not None else "."),
            hint="an edited plan may only use what a node has a kernel for; edgemm plan lists it",
        )


def _separated(editor: Editor, decision: Decision, node: ir.Node) -> list[ir.Node]:
    """The node itself, or what it becomes when every branch that it reads gets its own scale."""
    scales = decision.options.get(SCALES, SHARED)
    if scales not in (SHARED, SEPARATE):
        raise QuantizationError(
            f"node '{decision.node}' of stage '{decision.stage}': got \"{SCALES}\": {scales!r}, expected "
            f"'{SHARED}' or '{SEPARATE}'.",
            hint=f'leave the option out for "{SHARED}"',
        )
    return split_product(editor, node) if scales == SEPARATE else [node]


@dataclass(slots=True)
class _Pair:
    """One tensor's Q/DQ."""

    scale: arithmetic.ActivationScale
    quantize: ir.Node
    dequantized: ir.Value


@dataclass(slots=True)
class _StaticEditor:
    """Puts Q/DQ into one graph."""

    stage: str
    editor: Editor
    table: CalibrationTable
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
            if node.op_type == "MatMul":
                self._keep_apart(node, set(nodes))

    def _keep_apart(self, node: ir.Node, integer: set[ir.Node]) -> None:
        """Writes a float Add behind a MatMul as a Sum.

        ONNX Runtime turns a MatMul of two axes and its Add into a Gemm before it looks for integer kernels, finds
        none for a Gemm with a float bias, and dequantizes the weight on every call.
        """
        for user, _ in list(node.outputs[0].uses()):
            if user.op_type == "Add" and user not in integer:
                shape = user.outputs[0].shape
                if shape is None or len(shape) <= 2:
                    self.editor.become(user, "Sum", list(user.inputs), {})

    def _make_pair(self, value: ir.Value, value_range: TensorRange) -> None:
        scale = arithmetic.activation_scale(value_range)
        s = self.editor.constant(f"{value.name}/scale", np.asarray(scale.scale, np.float32))
        z = self.editor.constant(f"{value.name}/zero_point", np.asarray(scale.zero_point, np.uint8))
        quantize = make_node("QuantizeLinear", [value, s, z], f"{value.name}/quantized", {})
        dequantize = make_node("DequantizeLinear", [quantize.outputs[0], s, z], f"{value.name}/dequantized", {})
        quantize.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        quantize.outputs[0].shape = value.shape
        dequantize.outputs[0].type, dequantize.outputs[0].shape = value.type, value.shape
        self.editor.after_producer(value, [quantize, dequantize])
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
        outputs = self.editor.model.graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                name = value.name
                value.name, pair.dequantized.name = f"{name}/float", name
                outputs[index] = pair.dequantized

    def _quantize_weight(self, node: ir.Node, data: _Pair) -> None:
        source, weight = given_constant(node, 1)
        axis = weight_axis(node)
        scales = arithmetic.weight_scales(weight, axis, self.editor.bits)
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = constant_array(bias_value)
        if bias is not None:
            flat = np.broadcast_to(bias.ravel(), scales.shape)
            scales = arithmetic.widen_for_bias(scales, flat, data.scale.scale)
        key = (str(source.name), axis, scales.tobytes())
        if key not in self.weights:
            q = arithmetic.quantize_weight(weight, scales, axis, self.editor.bits)
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
            self.editor.constant(f"{name}/{q.dtype.name}", q),
            self.editor.constant(f"{name}/scale", scales),
            self.editor.constant(f"{name}/zero_point", np.zeros(scales.shape, q.dtype)),
        ]
        node = make_node("DequantizeLinear", inputs, f"{name}/dequantized", {"axis": axis})
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(q.shape)
        self.editor.model.graph.insert_before(self.editor.model.graph[0], [node])
        return node.outputs[0]
