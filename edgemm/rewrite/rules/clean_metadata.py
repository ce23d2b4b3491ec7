"""Drops what an exporter notes for its own debugging: stack traces with paths of the machine, doc strings.

The module path of a node (`namespace`, name scopes, class hierarchy) stays: reports name layers by it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.profiling.onnx_nodes import NAMESPACE, SCOPES
from edgemm.tensors import IOSpec

KEPT = frozenset({NAMESPACE, SCOPES, "pkg.torch.onnx.class_hierarchy"})
"""Keys that stay although an exporter wrote them. Keys that do not begin with `pkg.` are the user's and stay."""


def apply(model: ir.Model, io: IOSpec) -> int:
    """Drops exporter metadata; returns how many nodes, values and graphs lost some."""
    model.doc_string = None
    count = _clean(model.metadata_props)
    for graph in model.graphs():
        graph.doc_string = None
        count += _clean(graph.metadata_props)
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            node.doc_string = None
            count += _clean(node.metadata_props)
            values += node.outputs
        for value in values:
            value.doc_string = None
            count += _clean(value.metadata_props)
    return count


def _clean(properties: dict[str, str]) -> int:
    dropped = [k for k in properties if k.startswith("pkg.") and k not in KEPT]
    for key in dropped:
        del properties[key]
    return bool(dropped)
