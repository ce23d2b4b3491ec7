"""Identity nodes go: y = Identity(x) -> x in place of y.

An Identity stays where it is the only thing that gives an output its name: between an input, a weight, another
output or a value of an outer graph and the output of this one.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Removes identities in the graph and its subgraphs; returns how many."""
    nodes = [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.op_type == "Identity"]
    return sum(_remove(n) for n in nodes if n.domain == "")


def _remove(node: ir.Node) -> bool:
    value, output, graph = node.inputs[0], node.outputs[0], node.graph
    if value is None or graph is None:
        return False
    if output.is_graph_output():
        producer = value.producer()
        if producer is None or producer.graph is not graph or value.is_graph_output():
            return False
        name = output.name
        ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
        _copy_type(output, value)
        graph.remove(node, safe=True)
        value.name = name
        return True
    ir.convenience.replace_all_uses_with(output, value)
    graph.remove(node, safe=True)
    return True


def _copy_type(source: ir.Value, target: ir.Value) -> None:
    # the declared type and shape of an output belong to the signature
    if source.type is not None:
        target.type = source.type
    if source.shape is not None:
        target.shape = source.shape
