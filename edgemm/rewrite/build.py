"""Adds nodes and constants to a graph and takes values out of it: what the rules share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgemm.rewrite import dims
from edgemm.rewrite.dims import Dim


def array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Returns the constant that `value` is, or None if it is computed or an input."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or isinstance(tensor, ir.StringTensor) else tensor.numpy()


def integers(value: ir.Value | None) -> list[int] | None:
    """Returns the integers of a constant, flat, or None."""
    found = array(value)
    return None if found is None or found.dtype.kind not in "iu" else [int(i) for i in found.reshape(-1)]


def scalar(value: ir.Value | None) -> float | None:
    """Returns the number of a constant of one element, or None."""
    found = array(value)
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None


def reader(value: ir.Value) -> ir.Node:
    """Returns the first node that reads `value`."""
    return next(iter(value.uses())).node


def only_use(value: ir.Value) -> bool:
    """Whether one node reads `value`, once, and the graph does not give it out."""
    return len(value.uses()) == 1 and not value.is_graph_output()


class Builder:
    """Adds nodes in front of one node, named after it."""

    def __init__(self, before: ir.Node) -> None:
        graph = before.graph
        assert isinstance(graph, ir.Graph)
        self.graph = graph
        self.before = before

    def constant(self, data: npt.NDArray[Any]) -> ir.Value:
        """Returns a new initializer."""
        name = self._name()
        tensor = ir.tensor(data, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """Returns a new int64 initializer of one axis."""
        return self.constant(np.array(numbers, np.int64))

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: ir.Value,
        shape: Sequence[Dim | None] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Returns the output of a new node, with the type of `like` and the given dimensions (or its own)."""
        made = ir.node(op, inputs, attributes or {}, domain=domain, name=self._name())
        output = made.outputs[0]
        output.name, output.type = made.name, like.type
        output.shape = dims.shape(shape) if shape is not None else like.shape and like.shape.copy()
        made.metadata_props.update(self.before.metadata_props)
        self.graph.insert_before(self.before, made)
        return output

    def reshape(self, value: ir.Value, source: Sequence[Dim], wanted: Sequence[Dim]) -> ir.Value:
        """Returns `value` reshaped; `dims.target` must have an answer for the two."""
        numbers = dims.target(source, wanted)
        assert numbers is not None
        return self.node("Reshape", [value, self.integers(numbers)], like=value, shape=wanted)

    def _name(self) -> str:
        taken = {name for n in self.graph for name in (n.name, *(o.name for o in n.outputs))}
        taken |= set(self.graph.initializers) | {v.name for v in self.graph.inputs}
        base, number = self.before.name or self.before.op_type, 1
        while f"{base}__{number}" in taken:
            number += 1
        return f"{base}__{number}"


def replace(old: ir.Value, new: ir.Value) -> None:
    """Puts `new`, the output of a node that nothing else needs by name, in place of `old` and takes its name."""
    name, output = old.name, old.is_graph_output()
    if output:
        new.type, new.shape = old.type or new.type, old.shape or new.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if output:
        old.name = None
        new.name = name


def remove_dead(graph: ir.Graph, node: ir.Node | None) -> None:
    """Removes `node` and what only it needed."""
    while node is not None and node.graph is graph:
        if any(o.uses() or o.is_graph_output() for o in node.outputs):
            return
        inputs = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        producers = [v.producer() for v in inputs]
        for producer in producers[1:]:
            remove_dead(graph, producer)
        node = producers[0] if producers else None
