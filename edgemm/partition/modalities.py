"""Which modalities' values reach each node: bit sets, propagated to a least fixed point over the states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgemm.tensors import IOSpec

SHAPE_OPS = frozenset({"Shape", "Size"})
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


@dataclass(frozen=True, slots=True)
class Modalities:
    """The bits of a modality set: bit i is `names[i]`.

    States come last, one bit each under a name of its own; the bit is used only by a state that no modality
    reaches (a counter, say), which is then a pseudo modality.
    """

    names: tuple[str, ...]
    inputs: Mapping[ir.Value, int]
    states: tuple[tuple[ir.Value, ir.Value, int], ...]  # input, output, bit of its own

    def names_of(self, mask: int) -> tuple[str, ...]:
        """Returns the modalities of `mask` in the order of the model's inputs."""
        return tuple(name for i, name in enumerate(self.names) if mask >> i & 1)


@dataclass(slots=True)
class Overrides:
    """What the layout found out about nodes, on top of what flows in from their inputs. Only ever grows.

    Attributes:
        by_value: Shape and Size nodes that have to read their input as a value.
        extra: Modalities added to a node so that it lands in a given stage.
    """

    by_value: set[ir.Node] = field(default_factory=set)
    extra: dict[ir.Node, int] = field(default_factory=dict)


def modalities_of(graph: ir.Graph, io: IOSpec) -> Modalities:
    """Returns the modality bits of the inputs of `graph`."""
    names = list(io.modality_names())
    inputs: dict[ir.Value, int] = {}
    states: list[tuple[ir.Value, ir.Value, int]] = []
    by_name = {v.name: v for v in graph.inputs}
    outputs = {v.name: v for v in graph.outputs}
    for value in graph.inputs:
        if value.name in io.state_inputs or value.name is None:
            continue
        modality = io.modalities.get(value.name, value.name)
        if modality not in names:
            names.append(modality)
        inputs[value] = 1 << names.index(modality)
    for state in io.states:
        value, output = by_name[state.input], outputs[state.output]
        name = state.input if state.input not in names else f"{state.input} state"
        states.append((value, output, 1 << len(names)))
        names.append(name)
    return Modalities(tuple(names), inputs, tuple(states))


def outer_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """Returns the values that `node` reads: its inputs and what its subgraphs capture, each once, in order."""
    values = dict.fromkeys(v for v in node.inputs if v is not None)
    bodies = list(subgraphs(node))
    if bodies:
        inner = {id(b) for b in bodies}
        for body in bodies:
            used: Iterable[ir.Value | None] = [v for n in body for v in n.inputs]
            for value in (*used, *body.outputs):
                if value is not None and id(value.graph) not in inner:
                    values.setdefault(value)
    return tuple(values)


def subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    """Yields every subgraph of `node`, nested ones included."""
    for attr in node.attributes.values():
        if attr.is_ref():
            continue
        bodies: Sequence[ir.Graph] = ()
        if attr.type == ir.AttributeType.GRAPH:
            bodies = (attr.as_graph(),)
        elif attr.type == ir.AttributeType.GRAPHS:
            bodies = tuple(attr.as_graphs())
        for body in bodies:
            yield body
            for inner in body:
                yield from subgraphs(inner)


def is_random(node: ir.Node) -> bool:
    """Says whether two copies of `node` (or of a node in its subgraphs) would give different results."""
    if _draws(node):
        return True
    return any(_draws(n) for body in subgraphs(node) for n in body)


def _draws(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type in _RANDOM_OPS:
        return True
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        training = ir.convenience.get_const_tensor(node.inputs[2])
        return training is None or bool(training.numpy())
    return False


def reads_shape_only(node: ir.Node, overrides: Overrides) -> bool:
    """Says whether only the shape of the input of `node` matters, and no value of it."""
    return node.op_type in SHAPE_OPS and node.domain == "" and node not in overrides.by_value


def reach(
    nodes: Mapping[ir.Node, tuple[ir.Value, ...]], modalities: Modalities, overrides: Overrides
) -> dict[ir.Value, int]:
    """Returns value -> modality set for every input and node output that has one.

    States are the least fixed point: a state input starts empty and takes the set of its own output until
    nothing changes. One that stays empty gets the bit of its own, and the rest is propagated again.

    Args:
        nodes: Node -> `outer_inputs`, in topological order.
        modalities: The bits of the inputs.
        overrides: What the layout added.
    """
    states = dict.fromkeys((s[0] for s in modalities.states), 0)
    while True:
        masks = {**modalities.inputs, **states}
        for node, inputs in nodes.items():
            mask = overrides.extra.get(node, 0)
            if not reads_shape_only(node, overrides):
                for value in inputs:
                    mask |= masks.get(value, 0)
            if mask:
                for output in node.outputs:
                    masks[output] = mask
        found = {i: states[i] | masks.get(o, 0) for i, o, _ in modalities.states}
        if found == states:
            orphan = next(((i, bit) for i, _, bit in modalities.states if not states[i]), None)
            if orphan is None:
                return masks
            found[orphan[0]] = orphan[1]
        states = found
