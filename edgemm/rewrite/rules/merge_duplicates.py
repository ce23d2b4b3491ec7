"""Equal nodes with equal inputs are computed once: y = f(x), z = f(x) -> y for both.

Small equal initializers are merged first, so that nodes which differ only in a copy of a constant are found. Two
outputs stay two outputs, with an Identity between them. Declines when a node is random in a way that ONNX IR does
not know, since two draws are not one.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass

from edgemm.partition.modalities import is_random
from edgemm.tensors import IOSpec

SIZE_LIMIT = 1024
"""Elements of the largest initializer that is compared with others."""


def apply(model: ir.Model, io: IOSpec) -> int:
    """Merges duplicates; returns how many nodes and initializers went."""
    graph = model.graph
    before = len(graph) + len(graph.initializers)
    served = [
        v for g in model.graphs() for v in g.initializers.values() if v.is_graph_output() or v.is_graph_input()
    ]
    if not served:  # the pass warns about each of them; a duplicate constant costs less than the noise
        DeduplicateInitializersPass(size_limit=SIZE_LIMIT)(model)
    if not any(is_random(n) for n in graph):
        CommonSubexpressionEliminationPass()(model)
    return before - len(graph) - len(graph.initializers)
