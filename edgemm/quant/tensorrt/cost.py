"""A cost model for TensorRT: what int8 saves, where no GPU is there to tell. It orders; it predicts no latency.

The work of a node with a weight is its multiply-accumulates for one sample: every weight is used once per output
position. Tensor cores compute int8 products at twice the rate of fp16 (NVIDIA, Ampere GPU Architecture
whitepaper), so what int8 saves grows with the work. Memory traffic, reformats and kernel launches are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgemm.partition import StageGraph
from edgemm.quant.groups import Group
from edgemm.quant.tensors import constant_array, named_nodes

UNKNOWN = 16
"""Size that a symbolic dimension, the batch apart, is taken for."""


def work(node: ir.Node) -> int:
    """Returns the multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul for one sample."""
    weight = constant_array(node.inputs[1])
    if weight is None:
        return 0
    if node.op_type in ("Gemm", "MatMul"):
        return int(weight.size) * _product(node.outputs[0], slice(1, -1))
    # a transposed convolution uses its weights once per input position
    grid = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    return int(weight.size) * _product(grid, slice(2, None))


def _product(value: ir.Value | None, axes: slice) -> int:
    result = 1
    if value is not None and value.shape is not None:
        for size in list(value.shape)[axes]:
            result *= size if isinstance(size, int) else UNKNOWN
    return result


def savings(stage_graph: StageGraph, groups: Sequence[Group]) -> dict[str, float]:
    """Returns group -> its share of the work of all groups: what it saves in int8, by this model."""
    nodes = {s.name: named_nodes(s.model.graph) for s in stage_graph.stages}
    totals = {g.name: sum(work(nodes[g.stage][n]) for n in g.nodes) for g in groups}
    everything = max(sum(totals.values()), 1)
    return {name: total / everything for name, total in totals.items()}
