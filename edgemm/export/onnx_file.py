"""ONNX files as models: checked, run, their batch found and proven, their names kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm import _optional
from edgemm.compare import ParityReport
from edgemm.data import Sample, make_feed
from edgemm.errors import ExportError, ModelError, RecipeError, did_you_mean
from edgemm.export.archive import first_line
from edgemm.export.batching import (
    Batching,
    Run,
    Subject,
    Tolerance,
    check_repeatable,
    find_batching,
    fixed_batch_note,
)
from edgemm.export.describe import describe, provenance
from edgemm.export.feeds import Feeds, cast_row
from edgemm.export.model import LoadedModel
from edgemm.export.onnx_graph import clean, name_sizes, specs
from edgemm.export.request import (
    DynamicDim,
    DynamicReport,
    ExportRequest,
    ExportResult,
    FixedDim,
    Progress,
    with_single_sizes,
)
from edgemm.export.signature import find_states
from edgemm.export.verify import OrtRunner, prove_sizes
from edgemm.graph import ExportedGraph
from edgemm.tensors import BATCH, Dim, IOSpec, StateSpec, TensorSpec

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_IN_FILE = "fixed in the file"
_BATCH = 4


def load_onnx(path: Path) -> tuple[ir.Model, int, tuple[str, ...]]:
    """Returns the model at `path` with its external data in memory, its number of weights, and notes.

    Raises:
        ModelError: The file is no valid ONNX model, or its external data is missing or outside its folder.
    """
    onnx = _optional.require("onnx", extra="convert", why=f"read {path.name}")
    try:
        onnx.checker.check_model(str(path))
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    except Exception as error:
        raise ModelError(
            f"{path} is no valid ONNX model: {first_line(error)}.",
            hint="export it again; weights in a separate file must lie beside the .onnx",
        ) from error
    # Before IR version 4 every initializer was an input too.
    names = set(model.graph.initializers)
    for value in [v for v in model.graph.inputs if v.name in names]:
        model.graph.inputs.remove(value)
    weights = sum(_count(v) for v in model.graph.initializers.values())
    operators = Counter(node.op_type for node in model.graph.all_nodes())
    quantized = {name: n for name, n in operators.items() if name in _QUANTIZED or name.startswith("QLinear")}
    notes: tuple[str, ...] = ()
    if quantized:
        shown = ", ".join(f"{n} {name}" for name, n in sorted(quantized.items()))
        notes = (f"the file is quantized already ({shown}); it is taken as it is",)
    return model, weights, notes


def _count(value: ir.Value) -> int:
    tensor = value.const_value
    return int(tensor.size) if tensor is not None and tensor.dtype.is_floating_point() else 0


def adopt_onnx(
    loaded: LoadedModel, request: ExportRequest, samples: Mapping[int, Sample], progress: Progress
) -> ExportResult:
    """Returns an `.onnx` file as an exported graph. Sizes stay as the file has them; the batch is proven.

    Raises:
        ExportError: ONNX Runtime cannot run it, or the data has sizes that the file fixes otherwise.
        DataError: The samples do not fit the inputs.
        RecipeError: The request contradicts the file.
    """
    assert isinstance(loaded.program, ir.Model)
    model = loaded.program.clone()
    clean(model)
    tolerance = Tolerance(request.absolute_tolerance, request.relative_tolerance)
    rows = list(samples.values())
    progress("opening the graph in ONNX Runtime")
    run: Run = OrtRunner(model)
    inputs = _pin_declared(specs(model.graph.inputs), request.inputs)
    outputs = specs(model.graph.outputs)
    states = find_states(inputs, outputs, request.states)
    refuse_other_sizes(inputs, rows)
    symbols = _batch_symbols(inputs, rows, states)
    open_inputs = _renamed(inputs, symbols)
    progress("comparing a batch with single runs")
    batching = find_batching(Subject(run, open_inputs, {}, rows, states), tolerance)
    batch, reason = _batch_of(batching, inputs, outputs, states, bool(symbols))
    if not symbols and batch is not None:
        symbols = {str(d): BATCH for s in inputs for d in s.shape[:1] if isinstance(d, str)}
    chosen: dict[str, Dim] = {s: BATCH if batch == BATCH else 1 for s in symbols}
    final = _renamed(inputs, chosen)
    _write_shapes(model, final, chosen, run, batching.feeds, batch)
    feeds = replace(batching.feeds, inputs=final)
    io = describe(final, specs(model.graph.outputs), request, states, batch)
    runner = OrtRunner(model)
    dynamic = _dynamic_report(runner, feeds, inputs, reason, tolerance)
    progress("checking that batches and single runs agree")
    parity = _batch_parity(runner, io, feeds, samples)
    notes = loaded.notes + (("--opset does not apply to an .onnx file",) if request.opset else ())
    notes += fixed_batch_note(batching)
    if not rows:
        notes += ("the graph was run on synthetic inputs: pass --calib to run it on real ones",)
    dynamic = with_single_sizes(dynamic, io)
    return ExportResult(ExportedGraph(model, io, provenance(loaded, model)), dynamic, parity, notes)


def refuse_other_sizes(inputs: Sequence[TensorSpec], rows: Sequence[Sample]) -> None:
    """Stops when the data has a size that the file fixes to another one.

    Raises:
        ExportError: Naming the input, the axis and the sizes.
    """
    for spec in inputs:
        shapes = [np.shape(row[spec.name]) for row in rows if spec.name in row]
        for axis, size in enumerate(spec.shape):
            seen = sorted(
                {s[axis - len(spec.shape)] for s in shapes if 0 <= len(spec.shape) - len(s) <= min(axis, 1)}
            )
            if isinstance(size, int) and seen not in ([], [size]) and axis > 0:
                shown = ", ".join(map(str, seen[:6]))
                raise ExportError(
                    f"input '{spec.name}', axis {axis}: the data has sizes {shown} there, the file has {size}.",
                    hint=f"pad, cut or resize '{spec.name}' in the data, or export the model with an open size",
                )


def _pin_declared(inputs: Sequence[TensorSpec], declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Returns the file's inputs with the sizes that the user fixes."""
    by_name = {d.name: d for d in declared}
    for name in by_name:
        names = [i.name for i in inputs]
        if name not in names:
            raise RecipeError(
                f"--input {name}: no input '{name}' in this model (inputs: {', '.join(names)}).",
                hint=did_you_mean(name, names, "name one of the model's inputs"),
            )
    pinned = []
    for spec in inputs:
        wish = by_name.get(spec.name, spec)
        fits = wish.dtype == spec.dtype and len(wish.shape) == len(spec.shape)
        if not fits or any(isinstance(s, int) and s != w for s, w in zip(spec.shape, wish.shape, strict=True)):
            raise RecipeError(
                f"input '{spec.name}' is declared as {wish}; the file says {spec}.",
                hint="an .onnx file's dtypes and fixed sizes cannot be changed",
            )
        shape = tuple(w if isinstance(w, int) else s for s, w in zip(spec.shape, wish.shape, strict=True))
        pinned.append(TensorSpec(spec.name, spec.dtype, shape))
    return tuple(pinned)


def _batch_symbols(
    inputs: Sequence[TensorSpec], rows: Sequence[Sample], states: Sequence[StateSpec]
) -> dict[str, Dim]:
    """Returns the symbols on axis 0 of the fed inputs, if all have one and the data does not say otherwise."""
    kept = {s.input for s in states}
    found: dict[str, Dim] = {}
    for spec in inputs:
        if spec.name in kept or not spec.shape:
            continue
        first: Dim = BATCH if BATCH in spec.shape else spec.shape[0]
        row = np.asarray(rows[0][spec.name]) if rows and spec.name in rows[0] else None
        whole = row is not None and row.ndim == len(spec.shape) and row.shape[0] != 1
        if isinstance(first, int) or whole:
            return {}
        found[first] = BATCH
    return found


def _renamed(inputs: Sequence[TensorSpec], symbols: Mapping[str, Dim]) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(s, shape=tuple(symbols.get(d, d) if isinstance(d, str) else d for d in s.shape)) for s in inputs
    )


def _batch_of(
    batching: Batching,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    states: Sequence[StateSpec],
    symbolic: bool,
) -> tuple[Dim | None, str]:
    if symbolic:
        return (BATCH, "") if batching.dynamic else (1, batching.reason)
    kept = {s.input for s in states} | {s.output for s in states}
    sizes = {s.shape[0] for s in inputs if s.shape and s.name not in kept}
    if sizes == {1}:
        return 1, _IN_FILE
    results = {s.shape[0] for s in outputs if s.shape and s.name not in kept}
    only = next(iter(sizes)) if len(sizes) == 1 else None
    if isinstance(only, int) and results == sizes and batching.has_axis:
        return only, _IN_FILE
    return (1, _IN_FILE) if 1 in sizes and batching.has_axis else (None, "")


def _write_shapes(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    chosen: Mapping[str, Dim],
    run: Run,
    feeds: Feeds,
    batch: Dim | None,
) -> None:
    """Writes the final sizes into the graph: the inputs' as described, an output's batch found by running."""
    name_sizes(model, {s: str(d) for s, d in chosen.items()})
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        value.shape = ir.Shape(spec.shape)
    one = run(feeds.call())
    several = run(feeds.call(3)) if batch == BATCH else one
    for value in model.graph.outputs:
        assert value.name is not None
        shape = one[value.name].shape
        known = list(value.shape) if value.shape is not None else [None] * len(shape)
        dims: list[Dim] = []
        for axis, size in enumerate(known):
            follows = several[value.name].shape[axis] == 3 * shape[axis] and batch == BATCH
            named = size.value if isinstance(size, ir.SymbolicDim) else None
            if isinstance(size, int):
                dims.append(size)
            elif follows and shape[axis] == 1:
                dims.append(BATCH)
            elif batch != BATCH and named is not None and named in map(str, chosen.values()):
                dims.append(1)
            else:
                dims.append(named if named not in (None, BATCH) else f"{value.name}_dim{axis}")
        value.shape = ir.Shape(dims)


def _dynamic_report(
    runner: OrtRunner, feeds: Feeds, before: Sequence[TensorSpec], reason: str, tolerance: Tolerance
) -> DynamicReport:
    symbols = list(dict.fromkeys(d for s in feeds.inputs for d in s.shape if isinstance(d, str)))
    proof = prove_sizes(runner, runner, feeds, tolerance, symbols)
    dynamic, fixed = [], []
    for old, spec in zip(before, feeds.inputs, strict=True):
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                dynamic.append(DynamicDim(spec.name, axis, size, proof.checked[size]))
            elif isinstance(old.shape[axis], str) or (axis == feeds.axes[spec.name] and reason):
                fixed.append(FixedDim(spec.name, axis, size, reason or _IN_FILE))
    return DynamicReport(tuple(dynamic), tuple(fixed))


def _batch_parity(runner: OrtRunner, io: IOSpec, feeds: Feeds, samples: Mapping[int, Sample]) -> ParityReport:
    """Returns how far a sample's result in a batch is from its result alone: all that a lone file can show."""
    report = ParityReport()
    first = feeds.call(io.batch if isinstance(io.batch, int) else 1)
    states = {name: np.zeros_like(first[name]) for name in io.state_inputs}
    for sample in samples.values():
        if io.batch in (BATCH, 1, None):
            row = {i.name: cast_row(i.dtype, np.asarray(sample[i.name])) for i in io.feed_inputs}
            runner(make_feed(io, [row]) | states)
    if io.batch != BATCH:
        feed = first | states
        check_repeatable(runner, feed)
        once = runner(feed)
        report.add(once, runner(feed), 0)
        return report
    axes = {s.output: feeds.axes[s.input] or 0 for s in io.states}
    count = len(samples) or len(feeds.rows)
    sizes = feeds.sizes_of(0)
    for start in range(0, count, _BATCH):
        together = runner(feeds.call(_BATCH, start, sizes))
        for offset in range(min(_BATCH, count - start)):
            alone = runner(feeds.call(1, start + offset, sizes))
            part = {n: np.take(v, [offset], axis=axes.get(n, 0)) for n, v in together.items()}
            report.add(alone, part, list(samples)[start + offset] if samples else start + offset)
    return report
