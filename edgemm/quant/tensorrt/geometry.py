"""What stays float32 for TensorRT because it is a place or a time: half a pixel lost is a wrong answer.

*Forwards* from inputs that are named as geometry, coordinates or time: their values, what products, quotients and
differences make of them and of anything else (intrinsics @ points), and the elementwise and shape operators behind
those. A layer with weights ends it: what it gives are features, as is what is sampled at coordinates. Added to or
concatenated with features, coordinates are features, too.

*Backwards* from where coordinates are read (the grid of GridSample, the boxes of RoiAlign, indices of Gather and
Scatter that were computed in float): up to layers with weights, and to the model's inputs.

Steps of preprocessing that were baked into the graph stay float32 as well: pixels and samples are places, too.

A constant matrix of at most 4 × 4 is a transform between frames and no layer. fp16 has 11 bits: at pixel 1000 its
step is half a pixel, at 5000 four.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from edgemm.graph import PREPROCESS
from edgemm.partition import StageGraph
from edgemm.quant.kernels import STEP
from edgemm.quant.tensors import RECURRENT, WEIGHTED, constant_array, int_attribute

GEOMETRY = re.compile(
    r"(?:^|[_.\d])(?:intrinsics?|extrinsics?|poses?|timestamps?|calib(?:ration)?|geometry|[a-z]+2[a-z]+"
    r"|projections?|rotations?|translations?|cam(?:era)?_(?:k|matrix)"
    r"|points|point_?clouds?|xyz|coords?|coordinates?|grid)(?:$|[_.\d])"
)
"""Names of inputs that carry geometry, coordinates or time: `lidar2img`, `cam_intrinsics`, `pose`, `points` ..."""

TRANSFORM = 4
"""Largest side of a constant matrix that takes coordinates to another frame."""

FEW = 16
"""A layer that sums no more values than this (a flattened 4 × 4 matrix) reads coordinates in float32."""

_MIXES = frozenset({"MatMul", "Gemm", "Einsum", "Mul", "Div", "Sub"})
"""What makes coordinates of coordinates and anything else."""

_FEATURES = frozenset(
    {"GridSample", "RoiAlign", "Softmax", "LogSoftmax", "OneHot", "Attention", "RMSNormalization", *RECURRENT}
    | {f"{kind}Normalization" for kind in ("Batch", "Instance", "Layer", "Group", "MeanVariance")}
)
_COUNTS = frozenset({"Shape", "Size", "TopK", "ArgMax", "ArgMin", "NonZero", "Constant"})
"""Sizes, choices and constants: what is behind them is no place."""

_PLACES = {
    "GridSample": 1,
    "RoiAlign": 1,
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"), 1),
}
"""Operators that read coordinates -> the input that holds them."""

_CONDITIONS = {"Where": 0} | _PLACES
"""Inputs that choose among values and are no part of them."""


def geometry_cone(stages: StageGraph) -> dict[ir.Node, str]:
    """Returns the nodes of all stages that stay float32, with the reason in words.

    Args:
        stages: Float stages, each after those that it reads.
    """
    produced = {str(o.name): o for s in stages.stages for o in s.model.graph.outputs}
    steps = {n: STEP for s in stages.stages for n in s.model.graph if PREPROCESS in n.metadata_props}
    return _read(stages, produced) | _made(stages, produced) | steps


def _made(stages: StageGraph, produced: dict[str, ir.Value]) -> dict[ir.Node, str]:
    """Returns what is made of inputs that are geometry by their name."""
    cone: dict[ir.Node, str] = {}
    coordinates: dict[ir.Value, str] = {}
    features: set[ir.Value] = set()
    for stage in stages.stages:
        for value in stage.model.graph.inputs:
            name = str(value.name)
            origin = produced.get(name)
            if origin is None and GEOMETRY.search(name.lower()):
                coordinates[value] = name
            elif origin in coordinates:
                coordinates[value] = coordinates[origin]
            elif origin in features:
                features.add(value)
        for node in stage.model.graph:
            read = list(_values(node))
            source = next((coordinates[v] for v in read if v in coordinates), None)
            mixed = any(v in features for v in read)
            if _is_layer(node) or _is_feature(node):
                features.update(node.outputs)
                if source is not None and _sums_few(node):
                    cone[node] = _why(source)
            elif node.op_type in _COUNTS:
                continue
            elif source is not None and (node.op_type in _MIXES or not mixed):
                cone[node] = _why(source)
                coordinates |= {o: source for o in node.outputs if o.dtype != ir.DataType.BOOL}
            elif mixed:
                features.update(node.outputs)
    return cone


def _read(stages: StageGraph, produced: dict[str, ir.Value]) -> dict[ir.Node, str]:
    """Returns what makes the coordinates that some node reads."""
    cone: dict[ir.Node, str] = {}
    for reader in (n for s in stages.stages for n in s.model.graph if n.op_type in _PLACES):
        place = reader.inputs[_PLACES[reader.op_type]]
        reason = f"where {reader.op_type} '{reader.name}' reads: in half precision it would read elsewhere"
        pending = [place] if place is not None else []
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None:
                origin = produced.get(str(value.name)) if value.is_graph_input() else None
                pending += [origin] if origin is not None and origin is not value else []
            elif node not in cone and not (_is_layer(node) or _is_feature(node) or node.op_type in _COUNTS):
                cone[node] = reason
                pending += _values(node)
    return cone


def _why(source: str) -> str:
    return f"geometry or time, of '{source}': rounded to half precision it would point elsewhere"


def _values(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the inputs whose values the node computes with: no indices, no conditions."""
    skipped = _CONDITIONS.get(node.op_type)
    yield from (v for i, v in enumerate(node.inputs) if v is not None and i != skipped)


def _is_feature(node: ir.Node) -> bool:
    return node.op_type in _FEATURES or node.domain not in ("", "ai.onnx")


def _is_layer(node: ir.Node) -> bool:
    """Says whether a node has a weight that is more than a transform between frames."""
    if node.op_type not in WEIGHTED:
        return False
    weights = [a for v in node.inputs[:2] if (a := constant_array(v)) is not None]
    return any(a.ndim > 2 or a.shape[-1] > TRANSFORM or a.shape[0] > TRANSFORM for a in weights if a.ndim)


def _sums_few(node: ir.Node) -> bool:
    """Says whether a layer sums so few values that float32 costs nothing."""
    weight = constant_array(node.inputs[1]) if node.op_type in WEIGHTED else None
    if weight is None:
        return False
    if node.op_type in ("Conv", "ConvTranspose"):
        return bool(node.op_type == "Conv" and weight[0].size <= FEW)
    axis = -1 if int_attribute(node, "transB", 0) or weight.ndim == 1 else -2
    return bool(weight.shape[axis] <= FEW)
