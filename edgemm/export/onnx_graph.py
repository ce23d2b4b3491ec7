"""From an exported program to a clean ONNX graph: the user's names, named sizes, equal bytes on every run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import torch

from edgemm.errors import ExportError
from edgemm.export.quiet import quiet
from edgemm.export.recurrent import onnx_translations
from edgemm.export.trace import Traced, shorten
from edgemm.export.watch import layer_of_node
from edgemm.profiling.onnx_nodes import SCOPES
from edgemm.tensors import Dim, TensorSpec

_FOLD_INPUT_BYTES = 1 << 30
_FOLD_OUTPUT_BYTES = 1 << 28
# Folding these makes a large tensor out of a small one.
_GROWING = {"Expand", "Tile", "ConstantOfShape", "Range", "EyeLike", "DequantizeLinear", "Pad", "Resize"}


def to_onnx(traced: Traced, inputs: Sequence[str], outputs: Sequence[str], opset: int | None) -> ir.Model:
    """Returns the traced program as ONNX, with the given input and output names.

    Raises:
        ExportError: torch.onnx has no translation for an operator; the message names it and its layer.
    """
    try:
        with quiet():
            converted = torch.onnx.export(
                traced.program,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                custom_translation_table=onnx_translations(),
            )
    except Exception as error:
        raise _failure(error, traced.program) from error
    assert converted is not None
    model = converted.model
    _fold_constants(model)
    _rename(model, inputs, outputs)
    name_sizes(model, traced.symbols)
    clean(model)
    return model


def clean(model: ir.Model) -> None:
    """Takes out what names this machine or this process: doc strings, stack traces, addresses. In place.

    The module path of each node stays, under `SCOPES`.
    """
    model.doc_string = None
    model.metadata_props.clear()
    for graph in _graphs(model):
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.doc_string = None
            value.metadata_props.clear()
        for node in graph:
            node.doc_string = None
            layer = node.metadata_props.get(SCOPES)
            node.metadata_props.clear()
            if layer is not None:
                node.metadata_props[SCOPES] = _layer_path(layer)
            for value in node.outputs:
                value.doc_string = None
                value.metadata_props.clear()


def specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Returns the specs of a graph's inputs or outputs; unnamed open sizes get a name.

    Raises:
        ExportError: One is no tensor, or of a dtype that numpy lacks.
    """
    found = []
    for value in values:
        if value.dtype is None or not isinstance(value.type, ir.TensorType) or value.name is None:
            raise ExportError(
                f"'{value.name}' is a {type(value.type).__name__}, not a tensor.",
                hint="only tensors can be inputs and outputs",
            )
        dims: list[Dim] = []
        for axis, size in enumerate(value.shape if value.shape is not None else ()):
            dims.append(size if isinstance(size, int) else (size.value or f"{value.name}_dim{axis}"))
        found.append(TensorSpec(value.name, value.dtype.numpy().name, tuple(dims)))
    return tuple(found)


def name_sizes(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """Replaces symbols (`s77`, also inside `2*s77`) by other names in every shape of the model. In place."""
    if not symbols:
        return
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(s)}(?!\w)" for s in sorted(symbols, key=len, reverse=True)))

    def rename(value: ir.Value | None) -> None:
        if value is None or value.shape is None:
            return
        dims = [
            d if isinstance(d, int) else pattern.sub(lambda m: symbols[m.group()], d.value) if d.value else d
            for d in value.shape
        ]
        value.shape = ir.Shape(dims)

    for graph in _graphs(model):
        for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
            rename(value)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    seen: set[int] = set()
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for root in roots:
        if isinstance(root, ir.Graph):
            yield root
        for node in ir.traversal.RecursiveGraphIterator(root):
            graph = node.graph
            if isinstance(graph, ir.Graph) and graph is not root and id(graph) not in seen:
                seen.add(id(graph))
                yield graph


def _layer_path(scopes: str) -> str:
    """Drops edgemm's own wrapper: `['', 'model', 'model.fc', 'linear']` → `['', 'fc', 'linear']`."""
    if not re.match(r"\['', 'model'[,\]]", scopes):
        return scopes
    return re.sub(r"'model\.", "'", scopes.replace("['', 'model'", "[''", 1))


def _fold_constants(model: ir.Model) -> None:
    """Folds what torch.onnx leaves because of its size limits: repacked weights of recurrent layers above all."""
    from onnxscript import optimizer

    def keep_small(node: ir.Node) -> bool | None:
        return False if node.op_type in _GROWING else None

    with quiet():
        optimizer.optimize_ir(
            model,
            input_size_limit=_FOLD_INPUT_BYTES,
            output_size_limit=_FOLD_OUTPUT_BYTES,
            should_fold=keep_small,
        )


def _rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    graph = model.graph
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise ExportError(
            f"torch.onnx made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs of {len(inputs)} and "
            f"{len(outputs)}.",
            hint="an input that is not used may have been dropped; remove it from forward()",
        )
    _separate_outputs(graph)
    ends = {id(v) for v in [*graph.inputs, *graph.outputs]}
    wanted = {*inputs, *outputs}
    for inner in _graphs(model):
        values = [*inner.initializers.values(), *(v for node in inner for v in node.outputs)]
        for value in values:
            if value.name in wanted and id(value) not in ends:
                value.name = f"{value.name}__inner"
    for value in [*graph.inputs, *graph.outputs]:
        value.name = f"__renamed_{id(value)}"
    for value, name in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        value.name = name


def _separate_outputs(graph: ir.Graph) -> None:
    """Gives an output that is also an input, an initializer or another output a value of its own."""
    seen: set[int] = set()
    for index, value in enumerate(list(graph.outputs)):
        if id(value) in seen or value.producer() is None:
            node = ir.node("Identity", [value], num_outputs=1)
            copy = node.outputs[0]
            copy.shape, copy.type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = copy
        seen.add(id(graph.outputs[index]))


def _failure(error: BaseException, program: torch.export.ExportedProgram) -> ExportError:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(causes) < 8:
        causes.append(current)
        current = current.__cause__
    text = " ".join(str(cause) for cause in causes)
    nodes = {n.name: n for n in program.graph.nodes}
    found = re.search(r"node %?(\w+)", text) or re.search(r"%(\w+) :", text)
    node = nodes.get(found.group(1)) if found else None
    named = re.search(r"op='([\w.]+)'", text)
    if node is None and named is not None:
        last = named.group(1).rsplit(".", 1)[-1]
        node = next((n for n in program.graph.nodes if last in str(n.target)), None)
    operator = named.group(1) if named else str(node.target) if node is not None else "an operator"
    layer = layer_of_node(node) or "forward()"
    return ExportError(
        f"ONNX has no translation for {operator} in the layer {layer}: {shorten(causes[-1])}.",
        hint="replace the operator with others, or pass an .onnx that was exported another way",
    )
