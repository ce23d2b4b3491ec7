"""Puts a graph into the form that the partition and the rewrites rely on. Each function works in place.

The form: no local functions, unique node and value names, no output that is an initializer, and
every shape that ONNX can infer.
"""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgemm.tensors import IOSpec

_log = logging.getLogger(__name__)
_SMALL = 256  # elements; enough for every shape, and what inference reads are shapes


class _NameGenerator:
    """Names unnamed nodes after their operator and unnamed values after their producer."""

    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or node.op_type

    def generate_value_name(self, value: ir.Value) -> str:
        producer = value.producer()
        return value.name or (f"{producer.op_type}_out" if producer is not None else "value")


def inline_functions(model: ir.Model) -> int:
    """Replaces every call of a local function by its body; returns how many functions there were."""
    count = len(model.functions)
    if count:
        passes.InlinePass()(model)
        model.functions.clear()
    return count


def drop_weight_inputs(model: ir.Model, io: IOSpec) -> int:
    """Makes plain weights of initializers that are listed as inputs and are no input of `io`; returns how many.

    Files of IR version 3 and below must list every weight as an input. From version 4 on they need not, and an
    initializer that is no input cannot be overridden by a caller.
    """
    graph = model.graph
    signature = {i.name for i in io.inputs}
    weights = [v for v in graph.inputs if v.is_initializer() and v.name not in signature]
    for value in weights:
        graph.inputs.remove(value)
    model.ir_version = max(model.ir_version, 4)
    return len(weights)


def name_uniquely(model: ir.Model) -> int:
    """Gives every node a unique non-empty name and every value a name unique in its scope.

    Names of graph inputs and outputs stay as they are. Node names are unique across subgraphs too, since plans
    and reports refer to nodes by name alone.

    Returns:
        The number of nodes that were renamed.
    """
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    before = [n.name for n in nodes]
    passes.NameFixPass(name_generator=_NameGenerator())(model)
    used: set[str] = set()
    next_number: dict[str, int] = {}
    for node in nodes:
        base = name = node.name or node.op_type
        while name in used:
            next_number[base] = next_number.get(base, 0) + 1
            name = f"{base}_{next_number[base]}"
        node.name = name
        used.add(name)
    return sum(old != n.name for old, n in zip(before, nodes, strict=True))


def serve_initializer_outputs(model: ir.Model) -> int:
    """Puts an Identity behind every initializer that is a graph output; returns how many.

    The output keeps its name, the initializer gets a new one. An output that is an input stays as it is: ONNX
    names it once, so nothing can stand between the two.
    """
    graph = model.graph
    taken = {v.name for v in graph.inputs} | set(graph.initializers)
    taken |= {o.name for n in ir.traversal.RecursiveGraphIterator(graph) for o in n.outputs}
    served: dict[ir.Value, ir.Value] = {}
    for index, value in enumerate(graph.outputs):
        if value is None or value.is_graph_input() or not (value.is_initializer() or value in served):
            continue
        if value not in served:
            name = value.name
            renamed = f"{name}_value"
            while renamed in taken:
                renamed += "_"
            taken.add(renamed)
            output = ir.Value(name=name, shape=value.shape, type=value.type)
            served[value] = output
            value.name = renamed
            graph.append(ir.Node("", "Identity", [value], outputs=[output], name=f"serve_{name}"))
        graph.outputs[index] = served[value]
    return len(served)


def fill_shapes(model: ir.Model) -> int:
    """Fills in types and dimensions that ONNX shape inference knows and the graph does not.

    What is already known stays, symbol names included: an exporter knows more about its symbols than ONNX
    inference can find out. Large initializers are not copied.

    Returns:
        The number of values that gained a type or a dimension.
    """
    count = 0
    for node, inferred in zip(model.graph, _infer(model), strict=True):
        for value, known in zip(node.outputs, inferred.outputs, strict=True):
            count += _merge(value, known)
    for value in model.graph.initializers.values():
        if value.const_value is not None and (value.shape is None or value.type is None):
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.type = ir.TensorType(value.const_value.dtype)
    return count


def _infer(model: ir.Model) -> ir.Graph:
    """Returns the graph with every type and shape that ONNX infers, and without the data of large weights."""
    probe = model.clone()
    inputs, initializers = probe.graph.inputs, probe.graph.initializers
    for value in list(initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size > _SMALL:
            if tensor is not None:
                value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            if not value.is_graph_input():
                inputs.append(value)
            del initializers[value.name or ""]
    try:
        inferred = onnx.shape_inference.infer_shapes(ir.to_proto(probe), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        _log.debug("shape inference gave up: %s", error)
        return probe.graph
    return ir.from_proto(inferred).graph


def _merge(value: ir.Value, known: ir.Value) -> bool:
    changed = False
    if value.type is None and known.type is not None:
        value.type = known.type
        changed = True
    if known.shape is None:
        return changed
    if value.shape is None:
        value.shape = known.shape.copy()
        return True
    if len(value.shape) != len(known.shape):
        _log.debug(
            "value '%s': inference says rank %d, the graph %d", value.name, len(known.shape), len(value.shape)
        )
        return changed
    dims = [new if _unknown(old) else old for old, new in zip(value.shape, known.shape, strict=True)]
    if any(_unknown(old) and not _unknown(new) for old, new in zip(value.shape, dims, strict=True)):
        value.shape = ir.Shape(dims)
        changed = True
    return changed


def _unknown(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None


def remove_unused(model: ir.Model) -> int:
    """Removes nodes and initializers that no output needs; returns how many."""
    before = len(model.graph) + len(model.graph.initializers)
    passes.RemoveUnusedNodesPass()(model)
    return before - len(model.graph) - len(model.graph.initializers)
