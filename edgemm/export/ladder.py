"""Closes dimensions one at a time, each with its reason, until the graph holds what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgemm.errors import ExportError
from edgemm.export.batching import Batching, Tolerance
from edgemm.export.feeds import Feeds
from edgemm.export.flatten import FlatProgram
from edgemm.export.onnx_graph import specs, to_onnx
from edgemm.export.program import TorchProgram
from edgemm.export.request import DynamicDim, DynamicReport, ExportRequest, FixedDim, Progress
from edgemm.export.trace import TRACE_BATCH, trace
from edgemm.export.verify import OrtRunner, prove_sizes
from edgemm.memory import give_back_memory
from edgemm.tensors import BATCH, Dim, TensorSpec


@dataclass(frozen=True, slots=True)
class Outcome:
    """A graph that does what its shapes say.

    Attributes:
        model: The graph.
        runner: It, in ONNX Runtime.
        feeds: Rows, with the closed sizes filled in.
        inputs: Specs of the graph's inputs.
        outputs: Specs of its outputs.
        batch: As in IOSpec.
        dynamic: What is open and what is not.
    """

    model: ir.Model
    runner: OrtRunner
    feeds: Feeds
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: Dim | None
    dynamic: DynamicReport


def climb(program: TorchProgram, batching: Batching, request: ExportRequest, progress: Progress) -> Outcome:
    """Returns the graph with the most open dimensions that can be proven.

    Each round exports, looks at the graph's own shapes, runs it at other sizes, and closes what failed.

    Raises:
        ExportError: The model does not export, or a dimension would have to be closed that the data shows varying.
    """
    tolerance = Tolerance(request.absolute_tolerance, request.relative_tolerance)
    closed: dict[str, str] = {}
    if batching.has_axis and not batching.dynamic:
        closed[BATCH] = batching.reason
    while True:
        feeds = close(batching.feeds, closed, batching.size)
        progress("exporting" + (f" ({', '.join(closed)} fixed)" if closed else ""))
        open_symbols = list(dict.fromkeys(d for s in feeds.inputs for d in s.shape if isinstance(d, str)))
        traced = trace(program, feeds, TRACE_BATCH if BATCH in open_symbols else batching.size)
        failed = _symbols_of(feeds, traced.fixed)
        if not failed:
            model = to_onnx(traced, [s.name for s in feeds.inputs], program.module.names, request.opset)
            del traced
            give_back_memory(sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value))
            runner = OrtRunner(model)
            failed = _closed_by_onnx(model, feeds)
            if not failed:
                progress("running the graph at other sizes")
                proof = prove_sizes(runner, program.run, feeds, tolerance, open_symbols)
                failed = dict(proof.broken)
        if not failed:
            break
        closed |= failed
        refuse_varying(batching.feeds, failed, saved=isinstance(program.module, FlatProgram))
    report = DynamicReport(
        tuple(
            DynamicDim(s.name, a, d, proof.checked[d])
            for s in feeds.inputs
            for a, d in enumerate(s.shape)
            if isinstance(d, str)
        ),
        fixed_dims(batching.feeds, feeds, closed),
    )
    batch: Dim | None = BATCH if BATCH in open_symbols else batching.size if batching.has_axis else None
    return Outcome(model, runner, feeds, specs(model.graph.inputs), specs(model.graph.outputs), batch, report)


def close(feeds: Feeds, closed: Mapping[str, str], batch: int) -> Feeds:
    """Returns the rows with fixed sizes in the place of closed symbols."""
    sizes = feeds.sizes_of(0) | {BATCH: batch}
    inputs = tuple(
        replace(s, shape=tuple(sizes[d] if isinstance(d, str) and d in closed else d for d in s.shape))
        for s in feeds.inputs
    )
    return replace(feeds, inputs=inputs)


def fixed_dims(before: Feeds, after: Feeds, closed: Mapping[str, str]) -> tuple[FixedDim, ...]:
    """Returns every dimension of `before` that is open there and closed in `after`."""
    found = []
    for old, new in zip(before.inputs, after.inputs, strict=True):
        for axis, (symbol, size) in enumerate(zip(old.shape, new.shape, strict=True)):
            if isinstance(symbol, str) and isinstance(size, int):
                found.append(FixedDim(old.name, axis, size, closed[symbol]))
    return tuple(found)


def refuse_varying(feeds: Feeds, failed: Mapping[str, str], *, saved: bool) -> None:
    """Stops when a dimension that the data shows varying would be closed.

    Args:
        feeds: Rows with every open dimension.
        failed: Symbol -> why it cannot stay open.
        saved: True when the size may have been written by the torch.export call that made the file.

    Raises:
        ExportError: Naming the tensor, the axis, the sizes and the cause.
    """
    for symbol, reason in failed.items():
        if symbol == BATCH or len(feeds.seen(symbol)) < 2:
            continue
        name, axis = next((s.name, s.shape.index(symbol)) for s in feeds.inputs if symbol in s.shape)
        seen = feeds.seen(symbol)
        shown = ", ".join(map(str, seen[:6])) + (", ..." if len(seen) > 6 else "")
        again = f"save it again with torch.export's dynamic_shapes={{'{name}': {{{axis}: Dim.AUTO}}, ...}}, or "
        raise ExportError(
            f"input '{name}', axis {axis}: the data has the sizes {shown} there, but the model cannot be exported "
            f"with an open size: {reason}.",
            hint=(again if saved else "")
            + f"pad or cut '{name}' to one size in the data, or rewrite that layer without a fixed size",
        )


def _symbols_of(feeds: Feeds, fixed: Mapping[tuple[str, int], str]) -> dict[str, str]:
    shapes = {spec.name: spec.shape for spec in feeds.inputs}
    return {str(shapes[name][axis]): reason for (name, axis), reason in fixed.items()}


def _closed_by_onnx(model: ir.Model, feeds: Feeds) -> dict[str, str]:
    """Returns the open symbols for which the graph has a number after all: torch.onnx can fix one silently."""
    found: dict[str, str] = {}
    for spec, value in zip(feeds.inputs, _shapes(model), strict=True):
        for symbol, size in zip(spec.shape, value, strict=True):
            if isinstance(symbol, str) and isinstance(size, int):
                found[symbol] = f"torch.onnx fixed it to {size} without a message"
    return found


def _shapes(model: ir.Model) -> Sequence[tuple[Dim, ...]]:
    return [spec.shape for spec in specs(model.graph.inputs)]
