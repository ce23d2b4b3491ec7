"""Puts the steps of an input in front of it, in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgemm.bake.registry import emitter
from edgemm.bake.tape import Tape
from edgemm.errors import DataError
from edgemm.graph import PREPROCESS, ExportedGraph
from edgemm.preprocess.front import InputSteps, fitted, renamed
from edgemm.preprocess.step import Step, name_of
from edgemm.tensors import TensorSpec


def refusal(way: InputSteps) -> DataError | None:
    """Returns why no graph can compute these steps from this raw data; None if one can."""
    try:
        _write(Tape(way.input), ir.Value(name=way.raw.name), way.steps, way.raw)
    except DataError as error:
        return error
    return None


def bake(graph: ExportedGraph, ways: Sequence[InputSteps]) -> ExportedGraph:
    """Returns `graph` with the steps in front of its inputs: it takes the raw arrays in their place.

    A raw array keeps the modality of the inputs that are made of it; inputs made of one raw array become one.

    Args:
        graph: The exported graph; it is left as it is.
        ways: For each input that is to be made of raw data.

    Raises:
        DataError: A step has no form in a graph, or what comes out does not fit the input.
    """
    if not ways:
        return graph
    model = graph.model.clone()
    inputs = {str(v.name): v for v in model.graph.inputs}
    sizes = fitted(graph.io, ways)
    inner = [v for node in model.graph for v in node.outputs]
    taken = {str(v.name) for v in (*inputs.values(), *inner, *model.graph.initializers.values())}
    for value in inner:
        if value.name in {way.raw.name for way in ways} and not value.is_graph_output():
            value.name = _free(f"{value.name}/inner", taken)
    raws: dict[str, ir.Value] = {}
    for way in ways:
        old = inputs[way.input]
        if way.raw.name == way.input:
            old.name = _free(f"{way.input}/preprocessed", taken)
        raw = raws.get(way.raw.name) or _input(way.raw)
        raws[way.raw.name] = raw
        _insert(model, way, raw, old)
    baked = {way.input: way.raw.name for way in ways}
    order = dict.fromkeys(baked.get(name, name) for name in inputs)
    model.graph.inputs[:] = [raws.get(name) or inputs[name] for name in order]
    _set_sizes(model, sizes)
    return replace(graph, model=model, io=renamed(graph.io, ways))


def _insert(model: ir.Model, way: InputSteps, raw: ir.Value, old: ir.Value) -> None:
    tape = Tape(way.input)
    made = _write(tape, raw, way.steps, way.raw)
    if made is raw:
        made = tape.op("Identity", [raw])
    made.name, made.type, made.shape = old.name, old.type, old.shape
    old.name = None
    for value in tape.initializers:
        model.graph.register_initializer(value)
    first = next(iter(model.graph), None)
    if first is None:
        model.graph.extend(tape.nodes)
    else:
        model.graph.insert_before(first, tape.nodes)
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)


def _write(tape: Tape, value: ir.Value, steps: Sequence[Step], spec: TensorSpec) -> ir.Value:
    """Writes all steps; uint8 is float32 on the way, since TensorRT has it at inputs and outputs only."""
    prefix = tape.prefix
    if spec.dtype == "uint8":
        value = tape.cast(value)
    for number, step in enumerate(steps):
        name = name_of(step)
        emit = emitter(name)
        if emit is None:
            raise DataError(
                f"input '{prefix}': the step '{name}' cannot be computed by a graph.",
                hint=f"set inputs.{prefix}.bake to false: it then runs on the host",
            )
        done = len(tape.nodes)
        tape.prefix = f"{prefix}/{number}_{name}"
        value = emit(tape, value, step, spec)
        for node in tape.nodes[done:]:
            node.metadata_props[PREPROCESS] = name
        spec = step.output(spec)
    return tape.cast(value, "uint8") if spec.dtype == "uint8" else value


def _input(spec: TensorSpec) -> ir.Value:
    dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(dtype))


def _set_sizes(model: ir.Model, sizes: Mapping[str, int | str]) -> None:
    """Gives symbolic sizes that follow from the steps their value, everywhere in the main graph."""
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        if value.shape is not None and sizes:
            dims = [d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape([sizes.get(d, d) if isinstance(d, str) else d for d in dims])


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
