"""Where int8 goes: a first plan by rules, for what ONNX Runtime's CPU kernels do well.

Three passes over a stage: rules on the graph alone (`structure`), rules on calibrated ranges, and then the joins
(`Add`, `Concat`) between int8 nodes, which follow from the first two. What is really faster and accurate enough is
measured afterwards (`search`), which calls `plan_quantization` again with the nodes it wants float.

Softmax, LayerNorm, GELU and products of two activations always stay float: a mask of −1e4 in front of a Softmax
leaves no resolution for the scores.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm.partition import Stage, StageGraph
from edgemm.quant.plan import FLOAT, INT8, Decision, QuantPlan
from edgemm.quant.table import CalibrationTable, TensorRange
from edgemm.quant.tensors import (
    JOINS,
    MOVES,
    RECURRENT,
    WEIGHTED,
    activated_output,
    constant_array,
    data_inputs,
    int_attribute,
    is_quantized_graph,
    named_nodes,
    output_to_scale,
    table_key,
)

MIN_CONV_CHANNELS = 16
"""Fewer input channels do not fill an integer dot product; measured 1.4 to 4 times slower than float."""

MIN_CONV_FILTERS = 8
MIN_MATMUL_SIDE = 32
MIN_MATMUL_WEIGHTS = 8192
MIN_GEMM_WEIGHTS = 65536
"""Below this a Gemm on a few rows takes less time than quantizing its input."""

MIN_OPSET = 13

Verdict = tuple[str, str, str]
"""Precision, rule, reason."""


def plan_quantization(
    stage_graph: StageGraph,
    table: CalibrationTable,
    target: str = "cpu",
    *,
    keep_float: Mapping[tuple[str, str], tuple[str, str]] | None = None,
) -> QuantPlan:
    """Returns a decision for every Conv, ConvTranspose, Gemm, MatMul, recurrent layer and int8 join.

    Args:
        stage_graph: The float stages.
        table: Ranges from `collect`.
        target: What the plan is for; only `"cpu"` has rules so far.
        keep_float: `(stage, node)` -> `(rule, reason)` for nodes that must not be int8; joins follow.
    """
    kept = keep_float or {}
    decisions: list[Decision] = []
    for stage in stage_graph.stages:
        first = [_with_ranges(d, node, table) for d, node in structure(stage)]
        first = [
            replace(d, precision=FLOAT, rule=kept[d.stage, d.node][0], reason=kept[d.stage, d.node][1])
            if (d.stage, d.node) in kept and d.precision == INT8
            else d
            for d in first
        ]
        joins = _joins(stage, {d.node for d in first if d.precision == INT8}, kept, table)
        found = {d.node: d for d in [*first, *joins]}
        order = [*named_nodes(stage.model.graph), *found]
        decisions += [found[name] for name in dict.fromkeys(order) if name in found]
    calibration = {
        "calibrator": table.calibrator,
        "samples": table.samples,
        "data_digest": table.data_digest,
        "graph_digest": table.graph_digest,
        "weight_bits": weight_bits(),
    }
    return QuantPlan(target, tuple(decisions), calibration)


def tensors_to_calibrate(stage: Stage) -> tuple[str, ...]:
    """Returns the names of the tensors whose range a plan for `stage` may need, in graph order."""
    nodes = named_nodes(stage.model.graph)
    chosen = {d.node for d, _ in structure(stage) if d.precision == INT8}
    chosen |= {d.node for d in _joins(stage, chosen, {}, None)}
    names: dict[str, None] = {}
    for name, node in nodes.items():
        if name in chosen:
            names |= dict.fromkeys(str(v.name) for v in data_inputs(node))
            behind = output_to_scale(node)
            if behind is None and activated_output(node) is not node.outputs[0]:
                behind = activated_output(node)  # read outside this stage; needed when stages ship as one graph
            if behind is not None:
                names[str(behind.name)] = None
    return tuple(names)


def structure(stage: Stage) -> list[tuple[Decision, ir.Node | None]]:
    """Returns the decisions that the graph alone allows, each with its node (None inside a subgraph)."""
    graph = stage.model.graph
    everywhere = _graph_verdict(stage.model)
    result: list[tuple[Decision, ir.Node | None]] = []
    for name, node in named_nodes(graph).items():
        verdict = _verdict(node)
        if verdict is not None:
            if everywhere is not None and verdict[0] == INT8:
                verdict = everywhere
            result.append((Decision(name, node.op_type, stage.name, *verdict), node))
        for inner in _inner_nodes(node):
            if inner.op_type in WEIGHTED:
                reason = f"inside a {node.op_type}; subgraphs are not quantized"
                inner_name = f"{name}/{inner.name or inner.outputs[0].name}"
                result.append(
                    (Decision(inner_name, inner.op_type, stage.name, FLOAT, "in-subgraph", reason), None)
                )
    return result


def _graph_verdict(model: ir.Model) -> Verdict | None:
    if is_quantized_graph(model):
        return FLOAT, "already-quantized", "the graph came with Q/DQ or integer nodes; it stays as it is"
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < MIN_OPSET:
        return FLOAT, "opset-too-old", f"opset {opset} has no per-channel Q/DQ (needs {MIN_OPSET})"
    return None


def _inner_nodes(node: ir.Node) -> list[ir.Node]:
    graphs = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += list(attribute.as_graphs())
    return [inner for graph in graphs for inner in graph.all_nodes()]


def _verdict(node: ir.Node) -> Verdict | None:
    """Returns the rule that decides `node`, or None for operators that no rule is about."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in RECURRENT:
        return FLOAT, "recurrent", f"errors add up over the steps of a {node.op_type}"
    if node.op_type == "Gather":
        table = constant_array(node.inputs[0])
        if table is not None and table.ndim == 2 and table.dtype == np.float32 and table.size >= 4096:
            return FLOAT, "embedding", "a table lookup; int8 would not make it faster"
        return None
    if node.op_type not in WEIGHTED:
        return None
    weight = constant_array(node.inputs[1])
    if weight is None:
        side = "first" if constant_array(node.inputs[0]) is not None else "second"
        reason = (
            "both inputs are activations"
            if side == "second"
            else "the weight is the first input, which has no per-channel kernel"
        )
        return FLOAT, "no-constant-weight", reason
    if weight.dtype != np.float32:
        return FLOAT, "not-float32", f"the weight is {weight.dtype.name}"
    if constant_array(node.inputs[0]) is not None:
        return FLOAT, "constant-input", "the input is a constant"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_array(node.inputs[2]) is None:
        return FLOAT, "no-constant-bias", "the bias is an activation; integer kernels need a constant"
    if node.op_type == "ConvTranspose":
        return FLOAT, "no-integer-kernel", "ONNX Runtime has no integer ConvTranspose on CPUs"
    return _conv_verdict(node, weight) if node.op_type == "Conv" else _matmul_verdict(node, weight)


def _conv_verdict(node: ir.Node, weight: np.ndarray) -> Verdict:
    filters, channels = weight.shape[:2]
    groups = int_attribute(node, "group", 1)
    if groups > 1:
        # ONNX Runtime's float kernels have a blocked layout for 2-D depthwise convolutions, not for 1-D ones.
        if channels == 1 and filters == groups and weight.ndim == 3 and groups >= MIN_CONV_CHANNELS:
            return INT8, "depthwise-1d", f"{groups} channels, one filter each, along one axis"
        return FLOAT, "grouped-conv", f"{groups} groups of {channels} channels; float kernels are faster"
    if channels < MIN_CONV_CHANNELS:
        return FLOAT, "too-few-channels", f"{channels} input channels, fewer than {MIN_CONV_CHANNELS}"
    if filters < MIN_CONV_FILTERS:
        return FLOAT, "too-few-channels", f"{filters} output channels, fewer than {MIN_CONV_FILTERS}"
    return INT8, "conv-per-channel", f"{filters} filters of {weight[0].size} weights, one scale each"


def _matmul_verdict(node: ir.Node, weight: np.ndarray) -> Verdict:
    if weight.ndim != 2:
        return FLOAT, "weight-rank", f"the weight has {weight.ndim} axes; the integer kernel takes 2"
    columns, depth = weight.shape if int_attribute(node, "transB", 0) else weight.shape[::-1]
    if node.op_type == "Gemm":
        alpha, beta = (node.attributes[k].as_float() if k in node.attributes else 1.0 for k in ("alpha", "beta"))
        if int_attribute(node, "transA", 0) or alpha != 1.0 or beta != 1.0:
            return FLOAT, "gemm-form", "transA, alpha or beta is in use; the integer kernel has none"
        bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and bias.size not in (1, columns):
            return FLOAT, "gemm-form", f"the bias has shape {bias.shape}; the integer kernel takes one per column"
        if weight.size < MIN_GEMM_WEIGHTS:
            return FLOAT, "too-small", f"{depth} × {columns} weights; quantizing the input would cost more"
    if min(depth, columns) < MIN_MATMUL_SIDE:
        return FLOAT, "too-few-channels", f"{depth} × {columns} weights, a side below {MIN_MATMUL_SIDE}"
    if weight.size < MIN_MATMUL_WEIGHTS:
        return FLOAT, "too-small", f"{depth} × {columns} weights; quantizing the input would cost more"
    return INT8, f"{node.op_type.lower()}-per-channel", f"{depth} × {columns} weights, one scale per column"


def _with_ranges(decision: Decision, node: ir.Node | None, table: CalibrationTable) -> Decision:
    if decision.precision != INT8 or node is None:
        return decision
    needed = [str(v.name) for v in data_inputs(node)]
    behind = output_to_scale(node)
    if behind is not None:
        needed.append(str(behind.name))
    for tensor in needed:
        found = table.ranges.get(table_key(decision.stage, tensor))
        if found is None:
            return replace(
                decision,
                precision=FLOAT,
                rule="not-calibrated",
                reason=f"calibration never saw a finite value in '{tensor}'",
            )
        if found.seen_low == found.seen_high:
            return replace(
                decision,
                precision=FLOAT,
                rule="constant-range",
                reason=f"'{tensor}' was {found.seen_low:g} in every calibration sample",
            )
        if not _representable(found):
            return replace(
                decision,
                precision=FLOAT,
                rule="extreme-range",
                reason=f"'{tensor}' goes from {found.low:g} to {found.high:g}",
            )
    return decision


def _representable(tensor_range: TensorRange) -> bool:
    width = tensor_range.high - tensor_range.low
    return 1e-20 < width < 1e20


def _joins(
    stage: Stage,
    chosen: set[str],
    kept: Mapping[tuple[str, str], tuple[str, str]],
    table: CalibrationTable | None,
) -> list[Decision]:
    """Decides Add and Concat whose every input is already uint8: they keep the chain of integers unbroken."""
    nodes = named_nodes(stage.model.graph)
    integer: set[ir.Value] = set()
    result = []
    for name, node in nodes.items():
        if name in chosen and (behind := output_to_scale(node)) is not None:
            integer.add(behind)
        elif node.op_type in MOVES and node.inputs and node.inputs[0] in integer:
            integer.add(node.outputs[0])
        elif node.op_type in JOINS and node.domain in ("", "ai.onnx") and (stage.name, name) not in kept:
            inputs = list(node.inputs)
            if len(inputs) < 2 or not all(v in integer for v in inputs):
                continue
            output = activated_output(node)
            if table is not None and table_key(stage.name, str(output.name)) not in table.ranges:
                continue
            if node.op_type == "Concat" and not _feeds_integer(output, chosen, nodes):
                continue
            rule = "residual-add" if node.op_type == "Add" else "integer-concat"
            result.append(
                Decision(
                    name, node.op_type, stage.name, INT8, rule, "every input is int8 already; no way back needed"
                )
            )
            integer.add(output)
    return result


def _feeds_integer(value: ir.Value, chosen: set[str], nodes: Mapping[str, ir.Node]) -> bool:
    names = {id(node): name for name, node in nodes.items()}
    for use in value.uses():
        if names.get(id(use.node)) in chosen:
            return True
        if use.node.op_type in MOVES and _feeds_integer(use.node.outputs[0], chosen, nodes):
            return True
    return False


def weight_bits() -> int:
    """Returns 8, or 7 on x86 CPUs without VNNI.

    There the kernels multiply pairs of U8 · S8 into int16, which saturates with full 8-bit weights. A plan made
    here carries the number along, so a bundle for an older CPU should be converted on one.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return 8
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 7
    return 8 if "avx512_vnni" in flags or "avx_vnni" in flags else 7
