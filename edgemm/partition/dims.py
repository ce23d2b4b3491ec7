"""Where a stage reads a dimension from: the same symbol on one of its own inputs.

`Shape` and `Size` look at no value. A stage that needs the shape of a tensor it does not have takes each
dimension from where it is known: a fixed one is a constant, a symbolic one is read from an input of the stage
that carries the same symbol. Only when there is none does the shape become a value dependency.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import onnx_ir as ir

Source = int | tuple[ir.Value, int]
"""A fixed dimension, or the value and axis to read it from."""

_UNUSED = 1  # stands in for a dimension that no consumer picks


def carriers(values: Iterable[ir.Value]) -> dict[str, tuple[ir.Value, int]]:
    """Returns symbol -> (value, axis) of the first of `values` that carries it."""
    found: dict[str, tuple[ir.Value, int]] = {}
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(dim.value, (value, axis))
    return found


def resolve(node: ir.Node, sources: Mapping[str, tuple[ir.Value, int]]) -> tuple[Source, ...] | None:
    """Returns where each dimension that the Shape or Size `node` yields can be read, or None if one cannot.

    Dimensions that no consumer picks (a Gather of one axis behind a full Shape) need no source.
    """
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    axes = _axes(node, len(value.shape))
    needed = _picked(node, len(axes))
    result: list[Source] = []
    for position, axis in enumerate(axes):
        dim = value.shape[axis]
        if isinstance(dim, int):
            result.append(dim)
        elif position not in needed:
            result.append(_UNUSED)
        elif dim.value is not None and dim.value in sources:
            result.append(sources[dim.value])
        else:
            return None
    return tuple(result)


def missing(node: ir.Node, sources: Mapping[str, tuple[ir.Value, int]]) -> str:
    """Returns the first dimension that `resolve` found no source for, as text for a note."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return "its rank is unknown"
    for dim in value.shape:
        if isinstance(dim, ir.SymbolicDim) and dim.value not in sources:
            return "an unnamed dimension" if dim.value is None else f"dimension '{dim.value}'"
    return "no dimension"


def _axes(node: ir.Node, rank: int) -> range:
    if node.op_type == "Size":
        return range(rank)
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", rank)
    return range(rank)[start:end]


def _picked(node: ir.Node, length: int) -> set[int]:
    everything = set(range(length))
    output = node.outputs[0]
    if node.op_type == "Size" or output.is_graph_output():
        return everything
    picked: set[int] = set()
    for user, index in output.uses():
        if index != 0:
            return everything
        chosen = _gathered(user, length) if user.op_type == "Gather" else _sliced(user, length)
        if chosen is None:
            return everything
        picked |= chosen
    return picked


def _gathered(node: ir.Node, length: int) -> set[int] | None:
    indices = _constant(node.inputs[1])
    if indices is None or node.attributes.get_int("axis", 0) != 0:
        return None
    return {i + length if i < 0 else i for i in indices}


def _sliced(node: ir.Node, length: int) -> set[int] | None:
    if node.op_type != "Slice" or len(node.inputs) < 3 or any(v is not None for v in node.inputs[4:]):
        return None
    starts, ends = _constant(node.inputs[1]), _constant(node.inputs[2])
    if starts is None or ends is None or len(starts) != 1:
        return None
    return set(range(length)[starts[0] : ends[0]])


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or value is None or value.is_graph_input():
        return None
    return [int(i) for i in tensor.numpy().reshape(-1)]


def read_dims(graph: ir.Graph, node: ir.Node, sources: tuple[Source, ...], opset: int) -> None:
    """Replaces the Shape or Size `node` of `graph` by constants and by shapes of the given values.

    Shape(x) = Concat(d0, d1, ...) with every d a constant or Shape(source)[axis]; Size(x) is their product.

    Args:
        graph: A stage's graph, changed in place.
        node: The node to replace; its output keeps its name.
        sources: From `resolve`, over values of `graph`.
        opset: Version of the default domain; Shape takes `start` and `end` from 15 on.
    """
    builder = _Builder(graph, node, opset)
    runs: list[ir.Value] = []
    for fixed, run in itertools.groupby(sources, key=lambda s: isinstance(s, int)):
        if fixed:
            runs.append(builder.constant([s for s in run if isinstance(s, int)]))
        else:
            runs.extend(builder.dimension(*s) for s in run if not isinstance(s, int))
    if not runs:
        runs.append(builder.constant([]))
    result = runs[0] if len(runs) == 1 else builder.add("Concat", runs, {"axis": 0}, (len(sources),))
    if node.op_type == "Size":
        result = builder.add("ReduceProd", [result], {"keepdims": 0}, ())
    old = node.outputs[0]
    name = old.name
    if old.is_graph_output() and result.producer() is None:
        result = builder.add("Identity", [result], {}, (len(sources),))
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name


class _Builder:
    """Adds nodes and constants in front of one node, named after it."""

    def __init__(self, graph: ir.Graph, node: ir.Node, opset: int) -> None:
        self._graph = graph
        self._node = node
        self._opset = opset
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"{self._node.name}__dim{self._count}"

    def constant(self, values: list[int]) -> ir.Value:
        name = self._name()
        tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def dimension(self, value: ir.Value, axis: int) -> ir.Value:
        if self._opset >= 15:
            return self.add("Shape", [value], {"start": axis, "end": axis + 1}, (1,))
        rank = len(value.shape or ())
        return self.add(
            "Gather", [self.add("Shape", [value], {}, (rank,)), self.constant([axis])], {"axis": 0}, (1,)
        )

    def add(
        self, op: str, inputs: list[ir.Value], attributes: Mapping[str, int], shape: tuple[int, ...]
    ) -> ir.Value:
        name = self._name()
        output = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))
        attrs = [ir.AttrInt64(k, v) for k, v in attributes.items()]
        self._graph.insert_before(self._node, ir.Node("", op, inputs, attrs, outputs=[output], name=name))
        return output
