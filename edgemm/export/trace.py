"""torch.export with the dimensions that must stay open, step by step: explicit, then automatic, then fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from edgemm.errors import ExportError
from edgemm.export.feeds import Feeds
from edgemm.export.flatten import FlatModule
from edgemm.export.program import TorchProgram, from_exported_program
from edgemm.export.quiet import quiet
from edgemm.export.recurrent import opaque_recurrent_layers
from edgemm.export.watch import SizeWatch, plain_path, watch_sizes
from edgemm.tensors import BATCH, TensorSpec

TRACE_BATCH = 3
_NOISE = re.compile(
    r"(Caused by: \(_export.*|For more information.*|The error above.*|Suggested fixes:.*|If you're using.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Traced:
    """An exported program with what became of each open dimension.

    Attributes:
        program: The result of torch.export.
        symbols: torch's symbol -> the name that it has in the graph.
        fixed: (input, axis) -> why it is fixed although it was asked to stay open.
    """

    program: ExportedProgram
    symbols: Mapping[str, str]
    fixed: Mapping[tuple[str, int], str]


def trace(program: TorchProgram, feeds: Feeds, batch: int) -> Traced:
    """Returns the model as an exported program with as many open dimensions as torch allows.

    Args:
        program: The model.
        feeds: Rows to trace with; the words in their inputs' shapes are the dimensions to keep open.
        batch: Batch size to trace with.

    Raises:
        ExportError: torch.export fails even with every dimension fixed; the message names the layer.
    """
    feed = feeds.call(batch, sizes=_trace_sizes(feeds))
    tensors = tuple(torch.from_numpy(np.array(feed[spec.name])) for spec in feeds.inputs)
    source = _script_to_module(program, feeds, feed) if program.script is not None else program.module
    wanted = {
        (spec.name, axis): size
        for spec in feeds.inputs
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }
    time = any(size != BATCH for size in wanted.values())
    message = ""
    attempts = ("explicit", "auto") if wanted else ()
    for attempt in attempts:
        shapes = (_dynamic_shapes(feeds.inputs, wanted, attempt),)
        try:
            with quiet(), torch.no_grad(), watch_sizes(source) as watch, opaque_recurrent_layers(time):
                exported = torch.export.export(source, tensors, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            message = message or shorten(error)
            continue
        return _read_result(exported, feeds.inputs, wanted, watch)
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(source, tensors, strict=False)
    except Exception as error:
        raise _failure(error, source) from error
    return Traced(exported, {}, {key: message or "torch.export fixed it" for key in wanted})


def shorten(error: BaseException | str, limit: int = 300) -> str:
    """Returns the cause in a torch message: without advice about torch's own options, on one line."""
    text = _NOISE.sub("", str(error))
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    text = " ".join(lines[:4]) or type(error).__name__
    return (text if len(text) <= limit else text[: limit - 4] + " ...").rstrip(". ")


def layer_of(error: BaseException, root: nn.Module) -> str | None:
    """Returns the innermost module that an error went through, as `path (Class)`, told from its traceback."""
    names = {id(module): name for name, module in root.named_modules()}
    found = None
    current: BaseException | None = error
    while current is not None and found is None:
        trace = current.__traceback__
        while trace is not None:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in names and names[id(module)]:
                found = f"{plain_path(names[id(module)])} ({type(module).__name__})"
            trace = trace.tb_next
        current = current.__cause__ or current.__context__
    return found


def _failure(error: BaseException, root: nn.Module) -> ExportError:
    layer = layer_of(error, root) or "forward()"
    return ExportError(
        f"torch.export cannot convert the layer {layer}: {type(error).__name__}: {shorten(error)}.",
        hint="replace data-dependent Python control flow there (if, while, .item() on tensors) with tensor "
        "operations, or export the model yourself and pass the .pt2 or .onnx",
    )


def _trace_sizes(feeds: Feeds) -> dict[str, int]:
    """Returns sizes to trace with: at least 2, because torch fixes sizes of 0 and 1."""
    chosen: dict[str, int] = {}
    for symbol, first in feeds.sizes_of(0).items():
        larger = [size for size in feeds.seen(symbol) if size >= 2]
        chosen[symbol] = first if first >= 2 else (larger[0] if larger else 2)
    return chosen


def _dynamic_shapes(
    inputs: Sequence[TensorSpec], wanted: Mapping[tuple[str, int], str], attempt: str
) -> tuple[dict[int, Any], ...]:
    names = {symbol: re.sub(r"\W", "_", symbol) for symbol in wanted.values()}
    dims = {symbol: Dim(f"d_{name}") for symbol, name in names.items()}
    return tuple(
        {
            axis: dims[wanted[spec.name, axis]] if attempt == "explicit" else Dim.AUTO
            for axis in range(len(spec.shape))
            if (spec.name, axis) in wanted
        }
        for spec in inputs
    )


def _read_result(
    exported: ExportedProgram,
    inputs: Sequence[TensorSpec],
    wanted: Mapping[tuple[str, int], str],
    watch: SizeWatch,
) -> Traced:
    users = [s.arg.name for s in exported.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    values = {n.name: n.meta["val"] for n in exported.graph.nodes if n.op == "placeholder" and "val" in n.meta}
    symbols: dict[str, str] = {}
    fixed: dict[tuple[str, int], str] = {}
    for position, (spec, user) in enumerate(zip(inputs, users, strict=True)):
        for axis, size in enumerate(values[user].shape):
            wish = wanted.get((spec.name, axis))
            if wish is None:
                continue
            number = size if isinstance(size, int) else size.node.maybe_as_int()
            if number is not None:
                fixed[spec.name, axis] = watch.reason(position, axis) or f"torch.export fixed it to {number}"
            elif wish == BATCH or str(size) not in symbols:
                symbols[str(size)] = wish
    return Traced(exported, symbols, fixed)


def _script_to_module(program: TorchProgram, feeds: Feeds, feed: Mapping[str, np.ndarray]) -> nn.Module:
    """Returns a TorchScript module as a graph module, through torch's TorchScript converter."""
    from torch._export.converter import TS2EPConverter

    assert program.script is not None
    tensors = tuple(torch.from_numpy(np.array(feed[spec.name])) for spec in feeds.inputs)
    assert isinstance(program.module, FlatModule)
    args, kwargs = program.module.bind(tensors)
    try:
        with quiet(), torch.no_grad():
            converted = TS2EPConverter(cast(Any, program.script), args, kwargs).convert()
    except Exception as error:
        raise ExportError(
            f"the TorchScript archive cannot be converted: {type(error).__name__}: {shorten(error)}.",
            hint="export the original module with torch.export.save() instead",
        ) from error
    return from_exported_program(converted).module
