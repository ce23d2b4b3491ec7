"""Where int8 (or fp8, or int4 weights), fp16 and float32 go for TensorRT: a decision for every node that computes.

1. *int8* by the rules on the graph (`rules`) and on calibrated ranges. Scales are symmetric, one per tensor.
2. *Joins.* At a residual Add the skip input is int8 and the other stays as the convolution gives it, which lets
   TensorRT fuse both. At a Concat in front of an int8 node the branches share one scale, so that the integers pass
   through; where a branch would keep less than `MIN_BITS`, the reader is split by branch, or stays float.
   fp8 is for the same products, and has no joins: its error is relative, so a small branch loses nothing beside a
   large one. Int4 is for weights alone.
3. *Half* (fp16 or bf16) for everything else whose tensors fit, with room to spare: the largest value that
   calibration saw, times `HEADROOM`, must be below the largest of the format.
4. *Float32* where they do not fit, and for geometry: what inputs such as intrinsics, poses and points become, and
   the coordinates that something is read at (`geometry`).

Source: NVIDIA TensorRT documentation, "Working with Quantized Types" and "Strongly Typed Networks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.partition import Stage, StageGraph
from edgemm.quant.joins import MIN_BITS, JoinScales, decide_scales, explain_joins, join_scales
from edgemm.quant.plan import BF16, FLOAT, HALF, INT8, WEIGHT4, Decision, QuantPlan
from edgemm.quant.table import CalibrationTable, TensorRange
from edgemm.quant.tensorrt.formats import BLOCK_SIZE, FORMATS, SMALLEST_NORMAL, SMALLEST_SCALE
from edgemm.quant.tensorrt.geometry import geometry_cone
from edgemm.quant.tensorrt.half import HALF_OPS, allowed, float_values, is_float
from edgemm.quant.tensorrt.rules import verdict, verdict_in
from edgemm.quant.tensors import MOVES, constant_array, data_inputs, named_nodes, table_key

TARGET = "tensorrt"

HEADROOM = 4.0
"""How much larger than anything that calibration saw a value may become on the device."""

LARGEST = {HALF: 65504.0, BF16: 3.3e38}
"""Largest number of each format (IEEE 754 binary16; bfloat16)."""

HALF_SCALES = 19
"""First opset whose Q/DQ have scales in half precision."""

Node = tuple[str, str]


def tensors_to_watch(stage: Stage) -> tuple[str, ...]:
    """Returns the names of all float32 tensors of a stage: int8 needs the range of some, fp16 the peak of each."""
    return tuple(str(v.name) for v in float_values(stage.model) if constant_array(v) is None)


def plan_tensorrt(
    stage_graph: StageGraph,
    table: CalibrationTable,
    half: str | None = HALF,
    *,
    low: str = INT8,
    keep_float: Mapping[Node, tuple[str, str]] | None = None,
    no_low: Mapping[Node, tuple[str, str]] | None = None,
) -> QuantPlan:
    """Returns a decision for every node of the stages that a low or half precision is a question for.

    Args:
        stage_graph: The float stages.
        table: Ranges of `tensors_to_watch`, from `collect`.
        half: `"fp16"`, `"bf16"`, or None: what is not quantized stays float32.
        low: Of `formats.FORMATS`: what weights, and the activations that they meet, may be quantized to.
        keep_float: `(stage, node)` -> `(rule, reason)` for nodes that stay float32 whatever else says.
        no_low: The same for nodes that are not quantized; they are half precision where that is enough.

    Raises:
        QuantizationError: There is no such half or low precision.
    """
    if low not in FORMATS:
        raise QuantizationError(
            f"no low precision '{low}' (low precisions: {', '.join(FORMATS)}).",
            hint="use int8 on every NVIDIA GPU",
        )
    if half is not None and half not in LARGEST:
        raise QuantizationError(
            f"no half precision '{half}' (half precisions: {', '.join(LARGEST)}).",
            hint="use fp16 on every NVIDIA GPU",
        )
    scales = join_scales(stage_graph, table, verdict) if low == INT8 else ()
    decisions: list[Decision] = []
    cone = geometry_cone(stage_graph)
    for stage in stage_graph.stages:
        joins = tuple(j for j in scales if j.stage == stage.name)
        one = _Stage(stage, table, half, low, keep_float or {}, no_low or {}, joins)
        decisions += one.decisions(stage_graph, cone)
    calibration = {
        "calibrator": table.calibrator,
        "samples": table.samples,
        "data_digest": table.data_digest,
        "graph_digest": table.graph_digest,
    }
    return QuantPlan(TARGET, tuple(decisions), calibration)


def plan_half(
    stage_graph: StageGraph,
    table: CalibrationTable,
    half: str,
    keep_float: Mapping[Node, tuple[str, str]] | None = None,
) -> QuantPlan:
    """Returns the plan with nothing quantized: `half` wherever values fit, float32 elsewhere.

    Args:
        stage_graph: The float stages.
        table: Ranges of `tensors_to_watch`, from `collect`.
        half: `"fp16"` or `"bf16"`.
        keep_float: `(stage, node)` -> `(rule, reason)` for nodes that stay float32.

    Raises:
        QuantizationError: There is no such half precision.
    """
    why = "half", f"{half}; int8 is left out"
    every = {(s.name, str(node.name)): why for s in stage_graph.stages for node in s.model.graph}
    return plan_tensorrt(stage_graph, table, half, keep_float=keep_float, no_low=every)


@dataclass(frozen=True, slots=True)
class _Stage:
    stage: Stage
    table: CalibrationTable
    half: str | None
    low: str
    keep: Mapping[Node, tuple[str, str]]
    no_low: Mapping[Node, tuple[str, str]]
    joins: tuple[JoinScales, ...]
    lifted: bool = False

    def decisions(self, stage_graph: StageGraph, cone: Mapping[ir.Node, str]) -> list[Decision]:
        nodes = named_nodes(self.stage.model.graph)
        found = {n: d for n, node in nodes.items() if (d := self._integer(n, node)) is not None}
        found |= decide_scales(self.joins, found, frozenset())
        chosen = {n for n, d in found.items() if d.precision == self.low}
        if self.low == INT8:
            found |= {d.node: d for d in self._meetings(nodes, chosen)}
        after = replace(self, lifted=any(nodes[n] not in cone for n in chosen))
        for name, node in nodes.items():
            if (decision := after._rest(name, node, found.get(name), cone)) is not None:
                found[name] = decision
        told = {d.node: d for d in explain_joins(stage_graph, self.stage, self.joins, found)}
        found |= {n: d if n not in found else replace(found[n], reason=d.reason) for n, d in told.items()}
        return [found[name] for name in nodes if name in found]

    @property
    def _opset(self) -> int:
        """The opset that the graph will have: what it is quantized to may need a newer one."""
        own = self.stage.model.opset_imports.get("", 0)
        return max(own, FORMATS[self.low].opset) if self.lifted else own

    def _decide(self, name: str, node: ir.Node, precision: str, rule: str, reason: str) -> Decision:
        return Decision(name, node.op_type, self.stage.name, precision, rule, reason)

    def _integer(self, name: str, node: ir.Node) -> Decision | None:
        """Returns the decision of a node that has a weight, by the rules, its ranges and what was asked for."""
        guess = verdict_in(self.low, node)
        if guess is None:
            return None
        decision = self._decide(name, node, guess.precision, guess.rule, guess.reason)
        if guess.precision != self.low:
            return decision
        key = self.stage.name, name
        problem = self.keep.get(key) or self.no_low.get(key) or self._range_problem(node)
        if problem is not None:
            return replace(decision, precision=FLOAT, rule=problem[0], reason=problem[1])
        return replace(decision, options={"block_size": BLOCK_SIZE}) if self.low == WEIGHT4 else decision

    def _range_problem(self, node: ir.Node) -> tuple[str, str] | None:
        if FORMATS[self.low].weights_only:
            return None
        for value in data_inputs(node):
            found = self._range(value)
            if found is None:
                return "not-calibrated", f"calibration never saw a finite value in '{value.name}'"
            if max(abs(found.low), abs(found.high)) == 0.0:
                return "constant-range", f"'{value.name}' was 0 in every calibration sample"
            if value.producer() is not None and self._small_scale(value):
                return "small-range", f"'{value.name}' is so small that fp16 does not hold the scale of {self.low}"
        return None

    def _range(self, value: ir.Value) -> TensorRange | None:
        return self.table.ranges.get(table_key(self.stage.name, str(value.name)))

    def _meetings(self, nodes: Mapping[str, ir.Node], chosen: set[str]) -> list[Decision]:
        """Decides the Adds and Concats whose integers pass through."""
        integer = {v for n in chosen for v in data_inputs(nodes[n])}
        by_node = {id(node): name for name, node in nodes.items()}
        few = {j.node for j in self.joins if j.bits < MIN_BITS}
        result = []
        for name, node in nodes.items():
            if name in few or node.domain not in ("", "ai.onnx") or (self.stage.name, name) in self.keep:
                continue
            if node.op_type == "Add" and (skip := self._skip(node, chosen, by_node, integer)) is not None:
                reason = f"'{skip.name}' is int8 already; the convolution beside it takes it in"
                decision = self._decide(name, node, INT8, "residual-skip", reason)
                result.append(replace(decision, options={"skip": str(skip.name)}))
            elif node.op_type == "Concat" and self._passes(node, integer):
                reason = "one scale for every branch: the integers pass through"
                result.append(self._decide(name, node, INT8, "shared-scale", reason))
        return result

    def _skip(
        self, node: ir.Node, chosen: set[str], names: Mapping[int, str], integer: set[ir.Value]
    ) -> ir.Value | None:
        """Returns the input of a residual Add that is quantized: not that of the convolution that takes it in."""
        sides = [v for v in node.inputs if v is not None and constant_array(v) is None]
        if len(sides) != 2:
            return None
        fused = [v for v in sides if self._from_convolution(v, chosen, names)]
        if not fused:
            return None
        taken = fused[-1] if len(fused) == 2 else fused[0]
        skip = sides[0] if taken is sides[1] else sides[1]
        return skip if self._range(skip) is not None and (skip in integer or len(fused) == 2) else None

    def _from_convolution(self, value: ir.Value, chosen: set[str], names: Mapping[int, str]) -> bool:
        producer = value.producer()
        if producer is None or producer.op_type != "Conv" or names.get(id(producer)) not in chosen:
            return False
        return len(list(value.uses())) == 1 and not value.is_graph_output()

    def _passes(self, node: ir.Node, integer: set[ir.Value]) -> bool:
        """Whether an int8 node reads a Concat, at once or behind nodes that only move values."""
        if any(v is None or constant_array(v) is not None for v in node.inputs) or len(node.inputs) < 2:
            return False
        if any(self._range(v) is None for v in (*node.inputs, node.outputs[0]) if v is not None):
            return False
        pending = [node.outputs[0]]
        while pending:
            value = pending.pop()
            if value in integer:
                return True
            pending += [u.node.outputs[0] for u in value.uses() if u.idx == 0 and u.node.op_type in MOVES]
        return False

    def _rest(
        self, name: str, node: ir.Node, known: Decision | None, cone: Mapping[ir.Node, str]
    ) -> Decision | None:
        """Returns a node's decision with the float side settled: fp16, bf16 or float32."""
        floats = [v for v in (*node.inputs, *node.outputs) if v is not None and is_float(v)]
        if known is None and (not floats or node.op_type == "Constant"):
            return None
        rule, reason = self._why_float(name, node, floats, cone)
        if known is not None and known.precision == self.low:
            if rule == "geometry":
                return replace(known, precision=FLOAT, rule=rule, reason=reason)
            small = any(self._small_scale(value) for value in data_inputs(node))
            floats_stay = rule or small or self._opset < HALF_SCALES
            side = FLOAT if floats_stay else self.half or FLOAT
            return replace(known, options={**known.options, "float": side})
        if self.half is None:
            return known
        if not rule:
            why = known.reason if known is not None else f"at most {self._peak(floats):.3g}; {self.half} is enough"
            return self._decide(name, node, self.half, known.rule if known is not None else "half", why)
        if rule == "no-half" and known is None:
            return None
        return self._decide(name, node, FLOAT, rule, reason)

    def _why_float(
        self, name: str, node: ir.Node, floats: list[ir.Value], cone: Mapping[ir.Node, str]
    ) -> tuple[str, str]:
        """Returns rule and reason for float32; two empty texts where half precision is enough."""
        if (self.stage.name, name) in self.keep:
            return self.keep[self.stage.name, name]
        if node in cone:
            return "geometry", cone[node]
        if node.op_type not in HALF_OPS or node.domain not in ("", "ai.onnx"):
            return "no-half", f"{node.op_type} stays as it is"
        if self.half is not None and not allowed(node, self._opset, self.half):
            return "no-half", f"ONNX opset {self._opset} has no {node.op_type} in {self.half}"
        limit = LARGEST[self.half or HALF] / HEADROOM
        for value in floats:
            peak = self._peak([value])
            if not peak < limit:
                known = "was never seen" if math.isinf(peak) else f"reaches {peak:.3g}"
                return "overflow", f"'{value.name}' {known}; {self.half or HALF} holds {limit * HEADROOM:.4g}"
            if self.half == HALF and 0 < peak < SMALLEST_NORMAL and constant_array(value) is None:
                return (
                    "underflow",
                    f"'{value.name}' is at most {peak:.3g}; fp16 loses digits below {SMALLEST_NORMAL:.3g}",
                )
        return "", ""

    def _peak(self, values: list[ir.Value]) -> float:
        """Returns the largest magnitude of several tensors, infinite where one was not watched."""
        peak = 0.0
        for value in values:
            array = constant_array(value)
            if array is not None:
                finite = np.abs(array[np.isfinite(array)])
                peak = max(peak, float(finite.max(initial=0.0)))
            elif (found := self._range(value)) is not None:
                peak = max(peak, abs(found.seen_low), abs(found.seen_high))
            elif self.half != BF16:
                return math.inf
        return peak

    def _small_scale(self, value: ir.Value) -> bool:
        found = self._range(value)
        small = found is not None and max(abs(found.low), abs(found.high)) / 127 < SMALLEST_SCALE
        return small and self.low == INT8 and self.half == HALF  # scales of fp8 are never that small
