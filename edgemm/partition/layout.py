"""Which node runs in which stage, and what each stage reads: decided here, carried out by `cut`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgemm.partition.dims import Source, carriers, missing, resolve
from edgemm.partition.modalities import (
    Modalities,
    Overrides,
    is_random,
    modalities_of,
    outer_inputs,
    reach,
    reads_shape_only,
)
from edgemm.partition.runtime_types import fill_types
from edgemm.tensors import IOSpec


@dataclass(slots=True)
class StagePlan:
    """One stage to be.

    Attributes:
        mask: Its modality set.
        nodes: Its nodes and the constant ones that it copies, in graph order.
        inputs: Graph inputs in the model's order, then cut tensors in graph order.
        outputs: Graph outputs in the model's order, then cut tensors in graph order.
        dims: Shape and Size nodes that read dimensions from elsewhere than their input.
        unresolved: Shape and Size nodes whose dimensions nothing in this stage carries, and why.
    """

    mask: int
    nodes: list[ir.Node]
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    dims: dict[ir.Node, tuple[Source, ...]] = field(default_factory=dict)
    unresolved: dict[ir.Node, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """All stages to be, in topological order, and the modality set of every value that has one."""

    modalities: Modalities
    masks: Mapping[ir.Value, int]
    plans: tuple[StagePlan, ...]
    notes: tuple[str, ...]


def lay_out(model: ir.Model, io: IOSpec) -> Layout:
    """Returns the stages of `model`, a prepared graph (see `prepare`).

    A stage may ask for something that it cannot have: a dimension that none of its inputs carries, its own copy
    of a random number, a tensor list from another stage. Then the node in question gets more modalities and
    everything is laid out again; sets only grow, so this ends.
    """
    planner = _Planner(model, io)
    overrides = Overrides()
    notes: dict[str, None] = {}
    while True:
        masks = reach(planner.reads, planner.modalities, overrides)
        plans = planner.plan(masks, overrides)
        found = planner.revise(plans, masks, overrides)
        if not found:
            return Layout(planner.modalities, masks, tuple(plans), tuple(notes))
        notes.update(dict.fromkeys(n for n in found if n))


class _Planner:
    """The graph-wide facts that every round of the layout shares."""

    def __init__(self, model: ir.Model, io: IOSpec) -> None:
        graph = model.graph
        self.model = model
        self.graph = graph
        self.modalities = modalities_of(graph, io)
        self.reads = {node: outer_inputs(node) for node in graph}
        self.rank = {node: i for i, node in enumerate(graph)}
        self.inputs = {value: i for i, value in enumerate(graph.inputs)}
        self.outputs = {value: i for i, value in enumerate(graph.outputs)}
        self.random = {node for node in graph if is_random(node)}
        self.typed = False

    def plan(self, masks: Mapping[ir.Value, int], overrides: Overrides) -> list[StagePlan]:
        """Returns the stages in topological order, each cut down to what the model and later stages ask of it."""
        present = {masks.get(n.outputs[0], 0) for n in self.graph} - {0}
        wanted: dict[int, list[ir.Value]] = {mask: [] for mask in present}
        for mask, values in self._served(sorted(present, key=_order), masks).items():
            wanted.setdefault(mask, []).extend(values)
        plans: list[StagePlan] = []
        for mask in sorted(wanted, key=_order, reverse=True):
            outputs = dict.fromkeys(sorted(wanted[mask], key=self._output_place))
            if not outputs:
                continue  # nothing but shapes was read from it
            plan = self._plan_stage(mask, list(outputs), masks, overrides)
            for value in plan.inputs:
                if value not in self.inputs:
                    wanted[masks[value]].append(value)
            plans.append(plan)
        return plans[::-1]

    def _served(self, ordered: list[int], masks: Mapping[ir.Value, int]) -> dict[int, list[ir.Value]]:
        """Returns stage -> graph outputs that it gives."""
        last = ordered[-1] if ordered else 0
        served: dict[int, list[ir.Value]] = {}
        for value in self.outputs:
            mask = masks.get(value, 0)
            if value in self.inputs:  # passed through: by the smallest stage that may read it anyway
                mask = next((m for m in ordered if m & mask == mask), mask)
            served.setdefault(mask or last, []).append(value)
        return served

    def _plan_stage(
        self, mask: int, outputs: list[ir.Value], masks: Mapping[ir.Value, int], overrides: Overrides
    ) -> StagePlan:
        plan = StagePlan(mask, [], outputs=outputs)
        chosen: set[ir.Node] = set()
        read: set[ir.Value] = set()
        shapes: list[ir.Node] = []
        stack = list(outputs)
        sources: dict[str, tuple[ir.Value, int]] | None = None
        while stack or shapes:
            if not stack:  # everything but shapes is known: see where their dimensions can come from
                if sources is None:
                    sources = self._sources(mask, read, masks)
                    shapes.sort(key=self.rank.__getitem__, reverse=True)
                stack += self._resolve_shape(plan, shapes.pop(), sources, read, chosen, masks)
                continue
            value = stack.pop()
            producer = value.producer()
            if value in self.inputs or masks.get(value, 0) not in (0, mask):
                read.add(value)
            elif producer is not None and producer not in chosen:
                chosen.add(producer)
                values = self.reads[producer]
                if reads_shape_only(producer, overrides) and masks.get(values[0], 0):
                    shapes.append(producer)
                else:
                    stack.extend(values)
        plan.nodes = sorted(chosen, key=self.rank.__getitem__)
        plan.inputs = sorted(read, key=self._place)
        return plan

    def _sources(
        self, mask: int, read: set[ir.Value], masks: Mapping[ir.Value, int]
    ) -> dict[str, tuple[ir.Value, int]]:
        """Returns where a stage can read each symbol: first from what it reads, then from its modalities."""
        free = (v for v in self.inputs if v not in read and self._is_free(v, mask, masks))
        return carriers([*sorted(read, key=self._place), *free])

    def _is_free(self, value: ir.Value, mask: int, masks: Mapping[ir.Value, int]) -> bool:
        reached = masks.get(value, 0)
        return value in self.inputs and bool(reached) and reached | mask == mask

    def _resolve_shape(
        self,
        plan: StagePlan,
        node: ir.Node,
        sources: Mapping[str, tuple[ir.Value, int]],
        read: set[ir.Value],
        chosen: set[ir.Node],
        masks: Mapping[ir.Value, int],
    ) -> list[ir.Value]:
        """Decides how `plan` gets the shape that `node` yields; returns the values it must compute for that."""
        value = self.reads[node][0]
        here = value in read or value.producer() in chosen
        dims = resolve(node, {} if here else sources)
        if dims is not None:
            plan.dims[node] = dims
            read.update(d[0] for d in dims if not isinstance(d, int))
        elif not here and self._is_free(value, plan.mask, masks):
            read.add(value)
        elif not here and masks[value] == plan.mask:
            return [value]
        elif not here:
            plan.unresolved[node] = missing(node, sources)
        return []

    def _output_place(self, value: ir.Value) -> tuple[int, int, int]:
        return (0, self.outputs[value], 0) if value in self.outputs else (1, *self._place(value))

    def _place(self, value: ir.Value) -> tuple[int, int]:
        if value in self.inputs:
            return (-1, self.inputs[value])
        producer = value.producer()
        assert producer is not None
        return (self.rank[producer], value.index() or 0)

    def revise(self, plans: list[StagePlan], masks: Mapping[ir.Value, int], overrides: Overrides) -> list[str]:
        """Adds to `overrides` what `plans` lack; returns one note (or an empty line) per addition."""
        notes: list[str] = []
        unknown = [v for p in plans for v in p.inputs if v not in self.inputs and not _is_known(v)]
        if unknown and not self.typed:
            self.typed = True
            fill_types(self.model, unknown)
        for plan in plans:
            for node, why in plan.unresolved.items():
                if node not in overrides.by_value:
                    overrides.by_value.add(node)
                    notes.append(
                        f"{node.op_type} '{node.name}' is read as a value of '{self.reads[node][0].name}': "
                        f"{why} is on no input of the stage that needs it"
                    )
            for node in plan.nodes:
                if node in self.random and not masks.get(node.outputs[0]) and node not in overrides.extra:
                    overrides.extra[node] = plan.mask
                    notes.append("")
            for value in plan.inputs:
                producer = value.producer()
                if value in self.inputs or producer is None or _is_known(value):
                    continue
                overrides.extra[producer] = overrides.extra.get(producer, 0) | plan.mask
                notes.append(
                    f"'{producer.name}' runs with its consumer: '{value.name}' is no tensor of known type and rank"
                )
        return notes


def _is_known(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype is not None and value.shape is not None


def _order(mask: int) -> tuple[int, tuple[int, ...]]:
    bits = tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
    return len(bits), bits
