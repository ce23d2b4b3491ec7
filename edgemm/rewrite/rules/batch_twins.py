"""Encoders that share weights over several inputs of one shape run once, over a batch of all of them.

    f(a), f(b) -> Split(f(Concat(a, b)))

for any f of operators that compute every sample by itself (see `batchwise`), with equal constants on both sides,
whether they are the same initializers or copies under other names. The search starts at nodes with equal weights,
goes up to where their inputs part and from there down as far as both sides stay alike; several inputs per side,
more than two sides, and sides that begin within the graph (two frames of one input) are all the same to it. The
batch stays as dynamic as it was: the parts of the Split are equal, and constant shapes of Reshape are worked out
again, or the match ends there.

Whether it pays depends on sizes and machine: weights are read once, but caches hold less. It is therefore none of
the rules of a target, but a form of its own that competes. On graphs of single stages it keeps caching exact,
since a stage runs again as a whole. Declined where one side depends on the other, where a side's values have
different scales (quantized with ranges of their own), and where the batch would end up inside another dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgemm.rewrite import batchwise, build, dims, twins
from edgemm.rewrite.batchwise import Place, Step
from edgemm.rewrite.dims import Dim
from edgemm.tensors import IOSpec

Values = tuple[ir.Value, ...]
Nodes = tuple[ir.Node, ...]


def apply(model: ir.Model, io: IOSpec) -> int:
    """Joins twins of the main graph; returns how many encoders went (one of a pair, two of three)."""
    graph = model.graph
    opset = graph.opset_imports.get("", 1)
    count = 0
    done: set[ir.Node] = set()
    for seed in list(twins.seeds(graph)):
        if any(n.graph is not graph or n in done for n in seed):
            continue
        region = find(graph, seed, opset)
        if region is None:
            continue
        _merge(graph, region, opset)
        done.update(nodes[0] for nodes in region.nodes)
        count += len(seed) - 1
    if count:
        graph.sort()
    return count


def has_twins(model: ir.Model) -> bool:
    """Whether `apply` would change `model`."""
    graph = model.graph
    return any(find(graph, seed, graph.opset_imports.get("", 1)) for seed in twins.seeds(graph))


@dataclass(slots=True)
class Region:
    """What is to be computed once.

    Attributes:
        batch: Size of the batch of one side.
        nodes: One per side, in the order in which they run.
        entries: Values that are put together, by the first side's.
        values: Results, by the first side's.
        places: Where the batch is in either.
    """

    batch: Dim
    nodes: list[Nodes] = field(default_factory=list)
    entries: dict[ir.Value, Values] = field(default_factory=dict)
    values: dict[ir.Value, Values] = field(default_factory=dict)
    places: dict[ir.Value, Place] = field(default_factory=dict)

    def twin(self, value: ir.Value | None) -> Values | None:
        """Returns the values that `value`, of the first side, is joined with."""
        if value is None:
            return None
        return self.values.get(value) or self.entries.get(value)


def find(graph: ir.Graph, seed: Nodes, opset: int) -> Region | None:
    """Returns the region around `seed`, whose nodes are joined together, or None if they cannot be."""
    found = [e for e in twins.entries(seed) if dims.of(e[0])]
    for axis in (0, 1):
        region = _grow(graph, found, axis, len(seed), opset)
        if region is not None and seed in region.nodes and _leaves(region) and _runs(graph, region):
            return region
    return None


def _grow(graph: ir.Graph, found: Sequence[Values], axis: int, times: int, opset: int) -> Region | None:
    """Returns everything behind the entries that both sides have, with the batch of the entries in `axis`."""
    shapes = [(e, shape) for e in found if (shape := dims.of(e[0])) is not None and len(shape) > axis]
    if not shapes:
        return None
    region = Region(max(shapes, key=lambda pair: len(pair[1]))[1][axis])
    for values, shape in shapes:
        if shape[axis] == region.batch:
            region.entries[values[0]] = values
            region.places[values[0]] = Place(axis)
    taken: set[ir.Node] = set()
    for node in graph:
        if node in taken or not batchwise.knows(node) or not any(v in region.places for v in node.inputs if v):
            continue
        nodes = _twins_of(node, region, times, taken)
        places = _follow(nodes, region, opset) if nodes is not None else None
        if nodes is None or places is None:
            continue
        region.nodes.append(nodes)
        taken.update(nodes)
        for outputs, place in zip(zip(*(n.outputs for n in nodes), strict=True), places, strict=True):
            region.values[outputs[0]] = outputs
            region.places[outputs[0]] = place
    used = {v for nodes in region.nodes for v in nodes[0].inputs}
    region.entries = {v: values for v, values in region.entries.items() if v in used}
    return region


def _twins_of(node: ir.Node, region: Region, times: int, taken: set[ir.Node]) -> Nodes | None:
    """Returns `node` with what does the same on the other sides."""
    slot = next(i for i, v in enumerate(node.inputs) if v in region.places)
    values = region.twin(node.inputs[slot])
    assert values is not None
    nodes = [node]
    for side in range(1, times):
        for use in values[side].uses():
            other = use.node
            if use.idx != slot or other in taken or other in nodes or other.graph is not node.graph:
                continue
            if twins.all_alike((node, other)) and _reads_twins(node, other, region, side):
                nodes.append(other)
                break
    return tuple(nodes) if len(nodes) == times else None


def _reads_twins(node: ir.Node, other: ir.Node, region: Region, side: int) -> bool:
    for a, b in zip(node.inputs, other.inputs, strict=True):
        values = region.twin(a)
        if values is not None and values[side] is not b:
            return False
    return True


def _follow(nodes: Nodes, region: Region, opset: int) -> tuple[Place, ...] | None:
    """Returns the places of the batch in the results of joined nodes, after joining what else they read."""
    node = nodes[0]
    places = [region.places.get(v) if v is not None else None for v in node.inputs]
    more: dict[ir.Value, Values] = {}
    step = Step(node, tuple(places), region.batch, len(nodes), opset)
    for slot, value in enumerate(node.inputs):
        if value is None or places[slot] is not None or (node.op_type == "Reshape" and slot == 1):
            continue
        others = tuple(n.inputs[slot] for n in nodes if n.inputs[slot] is not None)
        if len(others) < len(nodes):
            return None
        axis = batchwise.joined_axis(step, slot)
        alike = all(dims.of(v) == dims.of(value) and v is not None and v.dtype == value.dtype for v in others)
        equal = all(twins.equal(value, v) for v in others[1:])
        fixed = build.array(value) is not None or (equal and region.batch == dims.ONE)
        if axis is not None and alike and (node.op_type == "Concat" or not fixed):
            more[value] = tuple(v for v in others if v is not None)
            places[slot] = Place(axis)
        elif not equal:
            return None
    result = batchwise.follow(Step(node, tuple(places), region.batch, len(nodes), opset))
    if result is not None:
        for value, values in more.items():
            region.entries[value] = values
            region.places[value] = next(p for v, p in zip(node.inputs, places, strict=True) if v is value and p)
    return result


def _outside(region: Region) -> Iterable[tuple[ir.Value, Values]]:
    """Yields results that something else needs."""
    inside = [set(side) for side in zip(*region.nodes, strict=True)]
    for first, values in region.values.items():
        for side, value in enumerate(values):
            if value.is_graph_output() or any(u.node not in inside[side] for u in value.uses()):
                yield first, values
                break


def _leaves(region: Region) -> bool:
    """Whether every result that something else needs can be cut into its sides."""
    return all(region.places[first].outer == dims.ONE for first, _ in _outside(region))


def _runs(graph: ir.Graph, region: Region) -> bool:
    """Whether the graph stays without a cycle when the nodes are joined."""
    joined = {node: nodes[0] for nodes in region.nodes for node in nodes}
    waits: dict[ir.Node, set[ir.Node]] = {}
    for node in graph:
        first = joined.get(node, node)
        producers = {p for v in twins.reads(node) if (p := v.producer()) is not None and p.graph is graph}
        waits.setdefault(first, set()).update(joined.get(p, p) for p in producers)
    readers: dict[ir.Node, list[ir.Node]] = {}
    for node, ahead in waits.items():
        for producer in ahead:
            readers.setdefault(producer, []).append(node)
    ready = [node for node, ahead in waits.items() if not ahead]
    done = 0
    while ready:
        done += 1
        node = ready.pop()
        for reader in readers.get(node, ()):
            waits[reader].discard(node)
            if not waits[reader]:
                ready.append(reader)
    return done == len(waits)


def _merge(graph: ir.Graph, region: Region, opset: int) -> None:
    times = len(region.nodes[0])
    outside = list(_outside(region))
    builder = build.Builder(region.nodes[0][0])
    whole: dict[ir.Value, ir.Value] = {}
    for first, values in region.entries.items():
        place = region.places[first]
        shape = batchwise.longer(first, place, region.batch, times)
        whole[first] = builder.node("Concat", values, {"axis": place.axis}, like=first, shape=shape)
    for node, *_ in region.nodes:
        if node.op_type == "Reshape" and node.inputs[0] is not None:
            places = region.places[node.inputs[0]], region.places[node.outputs[0]]
            numbers = batchwise.target(node, places, region.batch, times)
            assert numbers is not None
            node.replace_input_with(1, builder.integers(numbers))
            node.attributes.pop("allowzero", None)
        for slot, value in enumerate(node.inputs):
            if value is not None and value in whole:
                node.replace_input_with(slot, whole[value])
    own = {nodes[0] for nodes in region.nodes}
    originals = {first: first.shape and first.shape.copy() for first in region.values}
    for first in region.values:
        shape = batchwise.longer(first, region.places[first], region.batch, times)
        if shape is not None:
            first.shape = dims.shape(shape)
    for first, values in outside:
        _split(builder, values, originals[first], region.places[first].axis, own, opset)
    gone = [node for nodes in region.nodes for node in nodes[1:]]
    for node in reversed(gone):
        graph.remove(node, safe=True)


def _split(
    builder: build.Builder, values: Values, shape: ir.Shape | None, axis: int, own: set[ir.Node], opset: int
) -> None:
    """Cuts the first of `values`, which is now all of them, and puts the parts where they were read."""
    first = values[0]
    attributes = {"axis": axis} | ({"num_outputs": len(values)} if opset >= 18 else {})
    node = ir.node("Split", [first], attributes, num_outputs=len(values), name=f"{first.name}__sides")
    producer = first.producer()
    assert producer is not None
    node.metadata_props.update(producer.metadata_props)
    builder.graph.insert_after(producer, node)
    for number, (value, part) in enumerate(zip(values, node.outputs, strict=True)):
        part.type, part.shape = value.type, shape and shape.copy()
        name = value.name
        part.name = f"{name}__side{number}"
        for use in list(value.uses()):
            if use.node is not node and use.node not in own:
                use.node.replace_input_with(use.idx, part)
        for index, output in enumerate(builder.graph.outputs):
            if output is value:
                builder.graph.outputs[index] = part
                value.name, part.name = f"{name}__whole", name
