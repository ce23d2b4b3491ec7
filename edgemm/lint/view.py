"""A graph as the rules read it: local functions inlined, types inferred, every node with the bodies it is in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgemm.partition import prepare

_log = logging.getLogger(__name__)
_SMALL = 1024
"""Elements up to which type inference sees an initializer's values: what it reads are shapes."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node and where it is.

    Attributes:
        node: The node.
        name: Its name, or its operator and first output where it has none.
        scope: Names of the nodes whose bodies it is in, outermost first, joined by `/`.
    """

    node: ir.Node
    name: str
    scope: str

    @property
    def op(self) -> str:
        """Operator, with its domain where that is not ONNX's own."""
        return self.node.op_type if standard(self.node) else f"{self.node.domain}.{self.node.op_type}"


@dataclass(frozen=True, slots=True)
class View:
    """What rules read.

    Attributes:
        model: A copy of the model, prepared; it shares its weights with the original.
        sites: Every node, those in bodies of If, Loop and Scan included, in order.
        opset: Version of ONNX's own operators.
    """

    model: ir.Model
    sites: tuple[Site, ...]
    opset: int

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The inputs that a caller feeds: those that are no initializers."""
        return tuple(v for v in self.model.graph.inputs if not v.is_initializer())

    def of(self, *ops: str) -> Iterator[Site]:
        """Yields the sites of operators called so, in any domain: TensorRT's parser does not look at domains."""
        wanted = set(ops)
        for site in self.sites:
            if site.node.op_type in wanted:
                yield site


def open_view(model: ir.Model) -> View:
    """Returns a view of `model`, which stays as it is."""
    copy = model.clone()
    prepare.inline_functions(copy)
    _infer(copy)
    sites = tuple(_sites(copy.graph, ""))
    return View(copy, sites, copy.opset_imports.get("", 0))


def _sites(graph: ir.Graph, scope: str) -> Iterator[Site]:
    for node in graph:
        name = node.name or next((f"{node.op_type} -> {o.name}" for o in node.outputs if o.name), node.op_type)
        yield Site(node, name, scope)
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                yield from _sites(body, f"{scope}/{name}" if scope else name)


def _bodies(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    if attribute.type == ir.AttributeType.GRAPHS:
        return tuple(attribute.as_graphs())
    return ()


def _infer(model: ir.Model) -> None:
    """Fills in the types and shapes that ONNX infers, in bodies too; what the graph says itself stays."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.shape = ir.Shape(value.const_value.shape.numpy())
                value.type = ir.TensorType(value.const_value.dtype)
    probe = model.clone()
    initializers = probe.graph.initializers
    for name, value in list(initializers.items()):
        if value.const_value is not None and value.const_value.size > _SMALL:
            if not value.is_graph_input():
                probe.graph.inputs.append(value)
            del initializers[name]
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(probe), data_prop=True))
    except Exception as error:
        _log.debug("type inference gave up: %s", error)
        return
    for own, other in zip(model.graphs(), inferred.graphs(), strict=True):
        for node, known in zip(own, other, strict=True):
            for value, result in zip(node.outputs, known.outputs, strict=True):
                value.type = value.type or result.type
                if value.shape is None and result.shape is not None:
                    value.shape = result.shape.copy()


def standard(node: ir.Node) -> bool:
    """Whether the operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Returns an input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Returns what a value always is (an initializer, or the output of Constant), or None."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None:
        producer = value.producer()
        if producer is None or producer.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return None
    return np.asarray(tensor.numpy())


def is_constant(value: ir.Value | None, *, without: frozenset[str] = frozenset()) -> bool:
    """Whether a builder can fold a value: it is computed from constants and from fixed shapes only.

    Args:
        value: The value.
        without: Operators that count as not to be folded.
    """
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        if current.const_value is not None and not current.is_graph_input():
            continue
        producer = current.producer()
        if producer is None or producer.op_type in without:
            return False
        if producer.op_type in ("Shape", "Size") and None not in (dims(input_of(producer, 0)) or (None,)):
            continue
        pending.extend(producer.inputs)
    return True


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Returns an attribute's value, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Returns the sizes of a value, None for those that are not fixed, or None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def dtype(value: ir.Value | None) -> ir.DataType | None:
    """Returns the element type, or None where it is not known."""
    return None if value is None else value.dtype
