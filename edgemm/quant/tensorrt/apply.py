"""A plan for TensorRT carried out: symmetric Q/DQ in front of what is int8 or fp8, casts around what is half.

    x ─ Q ─ DQ ─ Conv ─ Relu ─ Q ─ DQ ─ Conv ─ Add ...          every scale symmetric, every zero point 0
             W8 ─ DQ ┘ bias float        skip ─ Q ─ DQ ┘

- All inputs of Conv, ConvTranspose, Gemm and MatMul are quantized, and none of their outputs.
- A tensor has one Q, whoever reads it; behind nodes that only move values, the scale of what they move.
- At a residual Add the skip input alone is quantized; at a Concat every branch, with one scale.
- Weights are stored as int8 or fp8 with a scale per output channel; biases stay float.
- A weight in int4 has a scale per block, and its node reads activations as they are.
- A DequantizeLinear gives the type that its reader computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.partition import Stage
from edgemm.quant.edit import Editor, make_node
from edgemm.quant.joins import SCALES, SEPARATE
from edgemm.quant.plan import FLOAT, FP8, INT8, Decision, QuantPlan
from edgemm.quant.split import split_product
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensorrt.formats import (
    BLOCK_SIZE,
    BLOCK_SIZES,
    FORMATS,
    Format,
    channel_weight,
    int4_blocks,
    raise_opset,
)
from edgemm.quant.tensorrt.half import DTYPES, to_half
from edgemm.quant.tensorrt.rules import verdict_in
from edgemm.quant.tensors import MOVES, WEIGHTED, given_constant, named_nodes, table_key, weight_axis

Low = dict[ir.Node, tuple[Format, int]]
"""Quantized nodes -> their format, and the weights per scale where that has blocks."""


def apply_tensorrt(stage: Stage, plan: QuantPlan, table: CalibrationTable) -> ir.Model:
    """Returns a new graph of `stage` with its decisions of `plan` carried out; the stage is not changed.

    Names, dtypes and order of the graph's inputs and outputs stay. Equal arguments give equal bytes.

    Raises:
        QuantizationError: The plan names a node that the stage lacks, a precision that the node cannot have, a
            tensor without a calibrated range, or the graph is too old for the plan.
    """
    model = stage.model.clone()
    nodes = named_nodes(model.graph)
    decisions = {d.node: d for d in plan.stage(stage.name) if d.precision != FLOAT}
    for decision in decisions.values():
        _check(decision, nodes)
    formats = [FORMATS[d.precision] for d in decisions.values() if d.precision in FORMATS]
    raise_opset(model, max((f.opset for f in formats if f.precision != INT8), default=0))
    nodes = named_nodes(model.graph)
    editor = Editor(model)
    halves: dict[ir.Node, ir.DataType] = {}
    low: Low = {}
    joins: dict[ir.Node, Decision] = {}
    for name, decision in decisions.items():
        node = nodes[name]
        parts = [node]
        if decision.options.get(SCALES) == SEPARATE:
            parts = split_product(editor, node)
            for part in parts:
                part.outputs[0].type, part.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        side = decision.options.get("float", FLOAT) if decision.precision in FORMATS else decision.precision
        if side != FLOAT:
            halves |= dict.fromkeys([*parts, node], DTYPES[side])
        if decision.precision in FORMATS:
            if decision.precision == INT8 and node.op_type in ("Add", "Concat"):
                joins[node] = decision
            else:
                block = decision.options.get("block_size", BLOCK_SIZE)
                low |= dict.fromkeys(parts, (FORMATS[decision.precision], block))
    to_half(editor, halves, low)
    _Quantizer(stage.name, editor, table, halves).run(low, joins)
    editor.drop_unused()
    return model


def _check(decision: Decision, nodes: Mapping[str, ir.Node]) -> None:
    where = decision.where
    node = decision.node_in(nodes)
    wanted = decision.precision
    if wanted not in (*FORMATS, *DTYPES):
        raise QuantizationError(
            f"node {where}: got precision '{wanted}', expected {', '.join(FORMATS)}, fp32, fp16 or bf16.",
            hint="plans for other targets do not fit TensorRT; plan again for this one",
        )
    if wanted in DTYPES:
        return
    found = verdict_in(wanted, node)
    able = found is not None and wanted in found.kernels
    if not able and not (wanted == INT8 and node.op_type in ("Add", "Concat")):
        raise QuantizationError(
            f"node {where} ({node.op_type}): got precision '{wanted}', expected fp32, fp16 or bf16"
            + (f"; {found.reason}." if found is not None else "."),
            hint="an edited plan may only use what a node has a kernel for",
        )
    block = decision.options.get("block_size", BLOCK_SIZE)
    if FORMATS[wanted].weights_only and block not in BLOCK_SIZES:
        raise QuantizationError(
            f"node {where}: got block size {block}, expected {' or '.join(map(str, BLOCK_SIZES))}.",
            hint="leave the option out for the default",
        )


@dataclass(slots=True)
class _Quantizer:
    """Puts Q/DQ into one graph, whose casts are there already."""

    stage: str
    editor: Editor
    table: CalibrationTable
    halves: Mapping[ir.Node, ir.DataType]
    quantized: dict[tuple[ir.Value, float, Format], ir.Value] = field(default_factory=dict)
    dequantized: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    weights: dict[tuple[str, int, ir.DataType, Format, int], ir.Value] = field(default_factory=dict)

    def run(self, nodes: Low, joins: Mapping[ir.Node, Decision]) -> None:
        scaled = {self._source(n.inputs[0]) for n, (f, _) in nodes.items() if not f.weights_only}
        for node, (found, block) in nodes.items():
            if not found.weights_only:
                source = self._source(node.inputs[0])
                scale = self._scale(source, scaled, found)
                node.replace_input_with(0, self._pair(source, scale, self._type(node), found))
            if node.op_type in WEIGHTED:
                self._quantize_weight(node, found, block if found.weights_only else 0)
        integers = FORMATS[INT8]
        for join, decision in joins.items():
            shared = self._scale(join.outputs[0], scaled, integers)
            for index, value in enumerate(list(join.inputs)):
                source = self._source(value)
                if join.op_type == "Add" and _plain(source) != decision.options.get("skip"):
                    continue
                scale = shared if join.op_type == "Concat" else self._scale(source, scaled, integers)
                join.replace_input_with(index, self._pair(source, scale, self._type(join), integers))

    def _type(self, node: ir.Node) -> ir.DataType:
        return self.halves.get(node, ir.DataType.FLOAT)

    def _source(self, value: ir.Value | None) -> ir.Value:
        """Returns the tensor in front of a cast that was made for its reader: its integers need no cast."""
        assert value is not None
        producer = value.producer()
        made = producer is not None and producer.op_type == "Cast" and str(value.name).endswith(_CASTS)
        source = producer.inputs[0] if made and producer is not None else value
        assert source is not None
        return source

    def _scale(self, value: ir.Value, scaled: set[ir.Value], form: Format) -> float:
        """Returns the symmetric scale of a tensor; behind nodes that only move values, that of what they move."""
        source, producer = value, value.producer()
        while producer is not None and producer.op_type in (*MOVES, "Cast") and producer.inputs[0] is not None:
            source = producer.inputs[0]
            producer = source.producer()
            if source in scaled:
                value = source
        found = self.table.ranges.get(table_key(self.stage, _plain(value)))
        if found is None:
            raise QuantizationError(
                f"stage '{self.stage}': no calibrated range for tensor '{_plain(value)}'.",
                hint="calibrate with this plan's graph; the table was made for another one",
            )
        low, high = found.low, found.high
        if form.precision == FP8:  # nothing is gained by cutting the largest values off
            low, high = found.seen_low, found.seen_high
        return float(max(np.float32(max(abs(low), abs(high)) / form.largest), np.float32(form.smallest_scale)))

    def _pair(self, value: ir.Value, scale: float, dtype: ir.DataType, form: Format) -> ir.Value:
        """Returns `value` after Q and DQ, as `dtype`; one Q for each scale of it."""
        key = value, scale, form
        if key not in self.quantized:
            others = sum(known is value for known, *_ in self.quantized)
            name = f"{_plain(value)}/{others}" if others else _plain(value)
            native = value.dtype or ir.DataType.FLOAT
            inputs = [value, self._scale_constant(name, scale, native), self._zero(name, form)]
            quantize = make_node("QuantizeLinear", inputs, f"{name}/quantized", {})
            quantize.outputs[0].type, quantize.outputs[0].shape = ir.TensorType(form.dtype), value.shape
            self.editor.after_producer(value, [quantize])
            self.quantized[key] = quantize.outputs[0]
        integers = self.quantized[key]
        if (integers, dtype) not in self.dequantized:
            base = str(integers.name).removesuffix("/quantized")
            inputs = [integers, self._scale_constant(base, scale, dtype), self._zero(base, form)]
            node = make_node("DequantizeLinear", inputs, f"{base}/dequantized{_suffix(dtype)}", {})
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
            self.editor.after_producer(integers, [node])
            self.dequantized[integers, dtype] = node.outputs[0]
        return self.dequantized[integers, dtype]

    def _scale_constant(self, name: str, scale: float | np.ndarray, dtype: ir.DataType) -> ir.Value:
        return self.editor.shared(
            f"{name}/scale{_suffix(dtype)}", np.asarray(scale, np.float32).astype(dtype.numpy())
        )

    def _zero(self, name: str, form: Format) -> ir.Value:
        return self.editor.shared(f"{name}/zero_point", form.zero)

    def _quantize_weight(self, node: ir.Node, form: Format, block: int) -> None:
        source, weight = given_constant(node, 1)
        axis, dtype = weight_axis(node), self._type(node)
        key = str(source.name), axis, dtype, form, block
        if key not in self.weights:
            others = any(k[0] == key[0] and (k[1], *k[3:]) != (axis, form, block) for k in self.weights)
            name = f"{source.name}/{axis}/{form.name}{block or ''}" if others else key[0]
            if block:
                inputs = self._blocks(name, weight, 1 - axis, dtype, block)
                attributes = {"axis": 1 - axis, "block_size": block}
            else:
                inputs, attributes = self._channels(name, weight, axis, dtype, form), {"axis": axis}
            made = make_node("DequantizeLinear", inputs, f"{name}/dequantized{_suffix(dtype)}", attributes)
            made.outputs[0].type, made.outputs[0].shape = ir.TensorType(dtype), ir.Shape(weight.shape)
            self.editor.model.graph.insert_before(self.editor.model.graph[0], [made])
            self.weights[key] = made.outputs[0]
        node.replace_input_with(1, self.weights[key])

    def _channels(
        self, name: str, weight: np.ndarray, axis: int, dtype: ir.DataType, form: Format
    ) -> list[ir.Value]:
        q, scales = channel_weight(form, weight, axis)
        return [
            self.editor.shared(f"{name}/{form.name}", q),
            self._scale_constant(name, scales, dtype),
            self.editor.shared(f"{name}/zero_points", np.zeros(scales.shape, form.dtype.numpy())),
        ]

    def _blocks(self, name: str, weight: np.ndarray, axis: int, dtype: ir.DataType, block: int) -> list[ir.Value]:
        q, scales = int4_blocks(weight, axis, block, dtype.numpy())
        suffix = _suffix(dtype)  # rounded for these scales
        return [
            self.editor.shared(f"{name}/int4{suffix}", q),
            self.editor.shared(f"{name}/scale{suffix}", scales),
        ]


_CASTS = ("/float", "/float16", "/bfloat16")


def _suffix(dtype: ir.DataType) -> str:
    return "" if dtype == ir.DataType.FLOAT else f"/{dtype.name.lower()}"


def _plain(value: ir.Value) -> str:
    """Returns the name that a tensor had in the float graph."""
    return str(value.name).removesuffix("/half")
