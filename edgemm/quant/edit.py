"""New nodes and constants in a graph that is being quantized, and what is left over afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators; OpenVINO reads the common ones as well."""

Attribute = int | float | str


@dataclass(slots=True)
class Editor:
    """Edits one graph in place. Equal edits give equal names.

    Attributes:
        model: The graph's model.
        bits: Of int8 weights: 8, or 7 for CPUs whose instructions saturate.
    """

    model: ir.Model
    bits: int = 8
    _shared: dict[str, ir.Value] = field(default_factory=dict)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Returns a new initializer."""
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value

    def shared(self, name: str, array: np.ndarray) -> ir.Value:
        """Returns the initializer called `name`, made of `array` the first time."""
        if name not in self._shared:
            self._shared[name] = self.constant(name, array)
        return self._shared[name]

    def unfolded(self, name: str, q: np.ndarray, scales: np.ndarray) -> ir.Value:
        """Returns `Cast(q) · scales` as float32, at the start of the graph, made once per `name`."""
        key = f"{name}/float"
        if key not in self._shared:
            stored, scale = self.constant(f"{name}/int8", q), self.constant(f"{name}/scale", scales)
            cast = make_node("Cast", [stored], f"{name}/cast", {"to": int(ir.DataType.FLOAT)})
            product = make_node("Mul", [cast.outputs[0], scale], key, {})
            value = product.outputs[0]
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(q.shape)
            self.model.graph.insert_before(self.model.graph[0], [cast, product])
            self._shared[key] = value
        return self._shared[key]

    def before(self, node: ir.Node, op: str, inputs: Sequence[ir.Value], name: str, to: int = 0) -> ir.Value:
        """Returns the output of a new `op` in front of `node`; `to` is the data type that a Cast gives."""
        new = make_node(op, inputs, name, {"to": to} if to else {})
        new.metadata_props.update(node.metadata_props)  # reports name layers by it
        self.model.graph.insert_before(node, [new])
        return new.outputs[0]

    def after_producer(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Puts `nodes` where `value` is first known."""
        producer = value.producer()
        if producer is not None:
            producer.append(list(nodes))
        else:
            self.model.graph.insert_before(self.model.graph[0], list(nodes))

    def become(
        self,
        node: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
    ) -> None:
        """Turns `node` into another operator with the same outputs; None keeps its attributes."""
        node.op_type, node.domain, node.overload = op, domain, ""
        node.version = None
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        if attributes is not None:
            node.attributes.clear()
            for attribute in ir.convenience.convert_attributes(attributes):
                node.attributes[attribute.name] = attribute
        if domain:
            self.model.opset_imports.setdefault(domain, 1)

    def drop_unused(self) -> None:
        """Takes out constants that nothing reads any more."""
        graph = self.model.graph
        for node in reversed(list(graph)):
            if node.op_type == "Constant" and not any(o.uses() or o.is_graph_output() for o in node.outputs):
                graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def make_node(
    op: str, inputs: Sequence[ir.Value | None], output: str, attributes: Mapping[str, Attribute]
) -> ir.Node:
    """Returns a node with one output, both called `output`."""
    node = ir.node(op, list(inputs), dict(attributes), name=output)
    node.outputs[0].name = output
    return node
