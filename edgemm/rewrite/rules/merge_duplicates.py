"""Equal nodes with equal inputs are computed once: y = f(x), z = f(x) -> y for both.

Equal initializers are merged first, so that nodes which differ only in a copy of a constant are found, and the
weights of an encoder that reads several inputs are stored once. Two outputs stay two outputs, with an Identity
between them. Declines when a node is random in a way that ONNX IR does not know, since two draws are not one.
"""

from __future__ import annotations

import hashlib

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from edgemm.partition.modalities import is_random
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Merges duplicates; returns how many nodes and initializers went."""
    graph = model.graph
    before = len(graph) + len(graph.initializers)
    _merge_initializers(graph)
    if not any(is_random(n) for n in graph):
        CommonSubexpressionEliminationPass()(model)
    return before - len(graph) - len(graph.initializers)


def _merge_initializers(graph: ir.Graph) -> None:
    """Lets every reader of a constant read the first that is equal; outputs and inputs stay what they are."""
    alike: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if (
            tensor is None
            or tensor.dtype == ir.DataType.STRING
            or value.is_graph_output()
            or value.is_graph_input()
        ):
            continue
        alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for values in alike.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            kept = first.setdefault(_digest(value), value)
            if kept is not value:
                for node, index in list(value.uses()):
                    node.replace_input_with(index, kept)
                assert value.name is not None
                del graph.initializers[value.name]


def _digest(value: ir.Value) -> bytes:
    assert value.const_value is not None
    return hashlib.sha256(value.const_value.tobytes()).digest()
