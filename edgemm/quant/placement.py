"""Where int8 goes: a first plan by rules, for what ONNX Runtime's CPU kernels do well, and what else is possible.

Three passes over a stage: rules on the graph alone (`kernels`), rules on calibrated ranges, and then the joins
(`Add`, `Concat`) between int8 nodes, which follow from the first two. What is really faster and accurate enough is
measured afterwards (`search`), which calls `plan_quantization` again with its `choices` among `alternatives`.

Softmax, LayerNorm, GELU and products of two activations always stay float: a mask of −1e4 in front of a Softmax
leaves no resolution for the scores.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgemm.errors import QuantizationError, did_you_mean
from edgemm.partition import Stage, StageGraph
from edgemm.quant.joins import MIN_BITS, decide_scales, explain_joins, join_scales, join_tensors
from edgemm.quant.kernels import Verdict, verdict
from edgemm.quant.plan import FLOAT, INT8, Decision, QuantPlan
from edgemm.quant.table import CalibrationTable, TensorRange
from edgemm.quant.tensors import (
    JOINS,
    MOVES,
    WEIGHTED,
    activated_output,
    data_inputs,
    is_quantized_graph,
    named_nodes,
    output_to_scale,
    table_key,
)

MIN_OPSET = 13

Node = tuple[str, str]
"""Stage name, node name."""


def plan_quantization(
    stage_graph: StageGraph,
    table: CalibrationTable,
    target: str = "cpu",
    *,
    keep_float: Mapping[Node, tuple[str, str]] | None = None,
    choices: Mapping[Node, str] | None = None,
) -> QuantPlan:
    """Returns a decision for every Conv, ConvTranspose, Gemm, MatMul, recurrent layer, embedding and int8 join.

    Args:
        stage_graph: The float stages.
        table: Ranges from `collect`.
        target: What the plan is for; only `"cpu"` has rules so far.
        keep_float: `(stage, node)` -> `(rule, reason)` for nodes that stay float whatever else says; joins follow.
        choices: `(stage, node)` -> precision, one of the node's `alternatives`, instead of the guess. A join that
            is chosen int8 is so only while everything that it reads is.

    Raises:
        QuantizationError: A choice names a node without alternatives, or a precision that is not among them.
    """
    kept, wanted = keep_float or {}, choices or {}
    scales = join_scales(stage_graph, table)
    decisions: list[Decision] = []
    listed: dict[Node, tuple[str, ...]] = {}
    for stage in stage_graph.stages:
        found = [_with_ranges(c, table) for c in structure(stage)]
        listed |= {(stage.name, c.decision.node): c.alternatives for c in found}
        by_name = {c.decision.node: _chosen(c, kept, wanted) for c in found}
        joins = tuple(j for j in scales if j.stage == stage.name)
        fixed = frozenset(n for s, n in wanted if s == stage.name)
        by_name |= decide_scales(joins, by_name, fixed)
        floats = {n for (s, n), p in wanted.items() if s == stage.name and p == FLOAT}
        floats |= {n for s, n in kept if s == stage.name}
        floats |= {j.node for j in joins if j.bits < MIN_BITS}
        chosen = {n for n, d in by_name.items() if d.precision == INT8}
        by_name |= {d.node: d for d in _joins(stage, chosen, floats, table)}
        by_name |= {d.node: d for d in explain_joins(stage_graph, stage, joins, by_name)}
        order = [*named_nodes(stage.model.graph), *by_name]
        decisions += [by_name[name] for name in dict.fromkeys(order) if name in by_name]
    unknown = [node for node in wanted if node not in listed]
    if unknown:
        listed |= _join_alternatives(stage_graph, table)
    for node in unknown:
        _check(node, wanted[node], listed)
    calibration = {
        "calibrator": table.calibrator,
        "samples": table.samples,
        "data_digest": table.data_digest,
        "graph_digest": table.graph_digest,
        "weight_bits": weight_bits(),
    }
    return QuantPlan(target, tuple(decisions), calibration)


def alternatives(stage_graph: StageGraph, table: CalibrationTable) -> dict[Node, tuple[str, ...]]:
    """Returns the precisions that each node may have, the guess of `plan_quantization` first.

    Only nodes that can be something else than float are listed, in graph order; among them the Add and Concat
    that may join integers.
    """
    result: dict[Node, tuple[str, ...]] = {}
    joins = _join_alternatives(stage_graph, table)
    scales = join_scales(stage_graph, table)
    for stage in stage_graph.stages:
        candidates = [_with_ranges(c, table) for c in structure(stage)]
        guesses = {c.decision.node: c.decision for c in candidates}
        own = tuple(j for j in scales if j.stage == stage.name)
        guesses |= decide_scales(own, guesses, frozenset())
        found = {n: listed for (s, n), listed in joins.items() if s == stage.name}
        for candidate in candidates:
            first = guesses[candidate.decision.node].precision
            if len(candidate.alternatives) > 1:
                rest = (p for p in candidate.alternatives if p != first)
                found[candidate.decision.node] = (first, *rest)
        result |= {(stage.name, n): found[n] for n in named_nodes(stage.model.graph) if n in found}
    return result


def possible(stage_graph: StageGraph) -> dict[Node, tuple[str, ...]]:
    """Returns the precisions that the graph alone lets each node have; ranges may take some of them away."""
    result: dict[Node, tuple[str, ...]] = {}
    for stage in stage_graph.stages:
        found = {c.decision.node: c.alternatives for c in structure(stage)}
        able = {node for node, listed in found.items() if INT8 in listed}
        found |= {d.node: (INT8, FLOAT) for d in _joins(stage, able, set(), None)}
        result |= {(stage.name, node): listed for node, listed in found.items()}
    return result


def _join_alternatives(stage_graph: StageGraph, table: CalibrationTable) -> dict[Node, tuple[str, ...]]:
    result: dict[Node, tuple[str, ...]] = {}
    scales = join_scales(stage_graph, table)
    for stage in stage_graph.stages:
        able = {c.decision.node for c in structure(stage) if INT8 in _with_ranges(c, table).alternatives}
        few = {j.node for j in scales if j.stage == stage.name and j.bits < MIN_BITS}
        for decision in _joins(stage, able, few, table):
            result[stage.name, decision.node] = (INT8, FLOAT)
    return result


def _chosen(candidate: Candidate, kept: Mapping[Node, tuple[str, str]], wanted: Mapping[Node, str]) -> Decision:
    decision = candidate.decision
    node = decision.stage, decision.node
    if node in kept:
        if decision.precision == FLOAT:
            return decision
        rule, reason = kept[node]
        return replace(decision, precision=FLOAT, rule=rule, reason=reason)
    precision = wanted.get(node, decision.precision)
    if precision == decision.precision:
        return decision
    _check(node, precision, {node: candidate.alternatives})
    guess = f"instead of {decision.precision}: {decision.reason}"
    return replace(decision, precision=precision, rule="chosen", reason=guess)


def _check(node: Node, precision: str, listed: Mapping[Node, tuple[str, ...]]) -> None:
    stage, name = node
    if node not in listed:
        raise QuantizationError(
            f"stage '{stage}' has no node '{name}' that can be anything but float; got '{precision}' for it.",
            hint=did_you_mean(name, [n for s, n in listed if s == stage], "choose among `alternatives`"),
        )
    if precision not in listed[node]:
        raise QuantizationError(
            f"node '{name}' of stage '{stage}': got precision '{precision}', expected "
            f"{' or '.join(listed[node])}.",
            hint="the other precisions have no kernel for this node, or no calibrated range",
        )


def tensors_to_calibrate(stage: Stage) -> tuple[str, ...]:
    """Returns the names of the tensors whose range any plan for `stage` may need, in graph order."""
    nodes = named_nodes(stage.model.graph)
    able = {c.decision.node for c in structure(stage) if INT8 in c.alternatives}
    able |= {d.node for d in _joins(stage, able, set(), None)}
    names: dict[str, None] = dict.fromkeys(join_tensors(stage))
    for name, node in nodes.items():
        if name in able:
            names |= dict.fromkeys(str(v.name) for v in data_inputs(node))
            behind = output_to_scale(node)
            if behind is None and activated_output(node) is not node.outputs[0]:
                behind = activated_output(node)  # read outside this stage; needed when stages ship as one graph
            if behind is not None:
                names[str(behind.name)] = None
    return tuple(names)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decision by rules, its node (None inside a subgraph), and the precisions that it may be changed to."""

    decision: Decision
    node: ir.Node | None
    alternatives: tuple[str, ...]


def structure(stage: Stage) -> list[Candidate]:
    """Returns the decisions that the graph alone allows, in graph order."""
    graph = stage.model.graph
    everywhere = _graph_verdict(stage.model)
    result: list[Candidate] = []

    def add(name: str, op: str, found: Verdict, node: ir.Node | None) -> None:
        decision = Decision(name, op, stage.name, found.precision, found.rule, found.reason)
        result.append(Candidate(decision, node, found.alternatives))

    for name, node in named_nodes(graph).items():
        found = verdict(node)
        if found is not None:
            able = len(found.alternatives) > 1
            add(name, node.op_type, everywhere if everywhere is not None and able else found, node)
        for inner in _inner_nodes(node):
            if inner.op_type in WEIGHTED:
                reason = f"inside a {node.op_type}; subgraphs are not quantized"
                inner_name = f"{name}/{inner.name or inner.outputs[0].name}"
                add(inner_name, inner.op_type, Verdict(FLOAT, "in-subgraph", reason), None)
    return result


def _graph_verdict(model: ir.Model) -> Verdict | None:
    if is_quantized_graph(model):
        reason = "the graph came with Q/DQ or integer nodes; it stays as it is"
        return Verdict(FLOAT, "already-quantized", reason)
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < MIN_OPSET:
        return Verdict(FLOAT, "opset-too-old", f"opset {opset} has no per-channel Q/DQ (needs {MIN_OPSET})")
    return None


def _inner_nodes(node: ir.Node) -> list[ir.Node]:
    graphs = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += list(attribute.as_graphs())
    return [inner for graph in graphs for inner in graph.all_nodes()]


def _with_ranges(candidate: Candidate, table: CalibrationTable) -> Candidate:
    """Returns the candidate without static int8 where a range for it is missing or of no use."""
    if INT8 not in candidate.alternatives or candidate.node is None:
        return candidate
    problem = _range_problem(candidate.decision.stage, candidate.node, table)
    if problem is None:
        return candidate
    decision = candidate.decision
    others = tuple(p for p in candidate.alternatives if p != INT8)
    if decision.precision == INT8:
        decision = replace(decision, precision=FLOAT, rule=problem[0], reason=problem[1])
        others = (FLOAT, *(p for p in others if p != FLOAT))
    return replace(candidate, decision=decision, alternatives=others)


def _range_problem(stage: str, node: ir.Node, table: CalibrationTable) -> tuple[str, str] | None:
    needed = [str(v.name) for v in data_inputs(node)]
    behind = output_to_scale(node)
    if behind is not None:
        needed.append(str(behind.name))
    for tensor in needed:
        found = table.ranges.get(table_key(stage, tensor))
        if found is None:
            return "not-calibrated", f"calibration never saw a finite value in '{tensor}'"
        if found.seen_low == found.seen_high:
            return "constant-range", f"'{tensor}' was {found.seen_low:g} in every calibration sample"
        if not _representable(found):
            return "extreme-range", f"'{tensor}' goes from {found.low:g} to {found.high:g}"
    return None


def _representable(tensor_range: TensorRange) -> bool:
    width = tensor_range.high - tensor_range.low
    return 1e-20 < width < 1e20


def _joins(
    stage: Stage,
    chosen: set[str],
    floats: set[str],
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
        elif node.op_type in JOINS and node.domain in ("", "ai.onnx") and name not in floats:
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
