"""Carries a layout out: one graph per stage, sharing its weights with the whole one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from edgemm.errors import ExportError
from edgemm.graph import is_of_preprocessing
from edgemm.partition.dims import read_dims
from edgemm.partition.layout import Layout, StagePlan
from edgemm.partition.modalities import outer_inputs
from edgemm.partition.stages import Edge, Stage
from edgemm.tensors import TensorSpec

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
_SHAPE_TYPES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_LONGEST_NAME = 80


def name_stages(layout: Layout) -> tuple[str, ...]:
    """Returns one name per stage, usable as a file name on any system and unique without regard to case.

    An encoder is called like its modality, a single head "fusion", one of several like its modalities: "a+b".
    """
    heads = sum(p.mask.bit_count() > 1 for p in layout.plans)
    names: list[str] = []
    taken: set[str] = set()
    for plan in layout.plans:
        modalities = layout.modalities.names_of(plan.mask)
        name = "fusion" if len(modalities) > 1 and heads == 1 else "+".join(modalities) or "constant"
        base = _UNSAFE.sub("_", name).strip(".")[:_LONGEST_NAME] or "stage"
        name, number = base, 1
        while name.lower() in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name.lower())
        names.append(name)
    return tuple(names)


def connect(layout: Layout, names: Sequence[str]) -> tuple[Edge, ...]:
    """Returns one edge per cut tensor and consumer, in the order of the consumers."""
    makers = {v: name for plan, name in zip(layout.plans, names, strict=True) for v in plan.outputs}
    return tuple(
        Edge(makers[value], name, value.name or "")
        for plan, name in zip(layout.plans, names, strict=True)
        for value in plan.inputs
        if value.producer() is not None
    )


def name_unknown_dims(layout: Layout) -> None:
    """Gives every unknown dimension of a cut tensor a symbol of its own."""
    for plan in layout.plans:
        for value in (*plan.inputs, *plan.outputs):
            if value.shape is None or all(_known(d) for d in value.shape):
                continue
            value.shape = ir.Shape(
                [d if _known(d) else f"{_symbol(value.name or '')}_d{i}" for i, d in enumerate(value.shape)]
            )


def build_stage(model: ir.Model, layout: Layout, plan: StagePlan, name: str) -> Stage:
    """Returns the stage of `plan` with a graph of its own; tensors are shared with `model`, not copied.

    Raises:
        ExportError: A tensor at the stage's border has no type that an array can have.
    """
    modalities = layout.modalities.names_of(plan.mask)
    graph = _build_graph(model.graph, plan, name)
    return Stage(
        name=name,
        modalities=modalities,
        role="fusion head" if len(modalities) > 1 else "encoder",
        inputs=tuple(_spec(v, name) for v in graph.inputs),
        outputs=tuple(_spec(v, name) for v in graph.outputs),
        model=ir.Model(
            graph,
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            domain=model.domain,
            model_version=model.model_version,
            metadata_props=dict(model.metadata_props),
        ),
        nodes=len(graph),
        parameters=sum(_weights(v) for v in graph.initializers.values()),
    )


def _build_graph(whole: ir.Graph, plan: StagePlan, name: str) -> ir.Graph:
    # Shape nodes still hold on to their input while the graph is cloned; a stand-in input lets them
    read = set(plan.inputs)
    produced = {o for n in plan.nodes for o in n.outputs}
    stand_ins = list(dict.fromkeys(v for n in plan.dims for v in n.inputs if v is not None))
    stand_ins = [v for v in stand_ins if v not in read and v not in produced]
    needed = dict.fromkeys(v for n in plan.nodes for v in outer_inputs(n))
    needed.update(dict.fromkeys(v for v in plan.inputs if v.is_initializer()))
    initializers = [v for v in needed if v.is_initializer() and v.graph is whole]
    graph = ir.GraphView(
        [*plan.inputs, *stand_ins],
        plan.outputs,
        nodes=plan.nodes,
        initializers=initializers,
        opset_imports=dict(whole.opset_imports),
        name=name,
    ).clone()
    if plan.dims:
        _read_dims(graph, plan)
    for _ in stand_ins:
        graph.inputs.pop()
    domains = {""} | {n.domain for n in ir.traversal.RecursiveGraphIterator(graph)}
    for domain in set(graph.opset_imports) - domains:
        del graph.opset_imports[domain]
    return graph


def _read_dims(graph: ir.Graph, plan: StagePlan) -> None:
    cloned = {v.name: v for v in graph.inputs}
    nodes = dict(zip(plan.nodes, list(graph), strict=True))
    opset = graph.opset_imports.get("", 1)
    for node, dims in plan.dims.items():
        sources = tuple(d if isinstance(d, int) else (cloned[d[0].name], d[1]) for d in dims)
        read_dims(graph, nodes[node], sources, opset)


def _spec(value: ir.Value, stage: str) -> TensorSpec:
    if (
        value.dtype is None
        or value.shape is None
        or value.name is None
        or not isinstance(value.type, ir.TensorType)
    ):
        raise ExportError(
            f"tensor '{value.name}' at the border of stage '{stage}' has type {value.type} and shape "
            f"{value.shape}, expected a tensor of known type and rank.",
            hint="declare the type and shape of every model input and output in the ONNX file",
        )
    dtype = "str" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(value.name, dtype, shape)


def _weights(value: ir.Value) -> int:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or is_of_preprocessing(value):
        return 0
    # integer vectors are shapes, axes and indices; an integer table is a weight; a single number is a constant
    is_shape = tensor.dtype in _SHAPE_TYPES and len(tensor.shape) < 2
    return 0 if is_shape or tensor.size < 2 else int(tensor.size)


def _known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None


def _symbol(name: str) -> str:
    return re.sub(r"\W+", "_", name)
