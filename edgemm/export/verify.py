"""Runs an exported graph in ONNX Runtime and proves it: at every size, and against torch on the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm import _optional
from edgemm.compare import ParityReport
from edgemm.data import Sample, make_feed
from edgemm.errors import EdgemmError, ExportError, ParityError
from edgemm.export.archive import first_line
from edgemm.export.batching import Run, Tolerance
from edgemm.export.feeds import Feeds, cast_row
from edgemm.graph import on_disk
from edgemm.tensors import BATCH, Feed, IOSpec

_BATCHES = (1, 2, 5)
_BUILTIN_DOMAINS = {
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "ai.onnx.preview.training",
    "com.microsoft.nchwc",
}


class OrtRunner:
    """An ONNX model in ONNX Runtime on the CPU, for checks during conversion."""

    def __init__(self, model: ir.Model) -> None:
        ort = _optional.require("onnxruntime", extra="cpu", why="check the exported graph")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False  # memory goes back after every call: torch holds the model as well
        options.add_session_config_entry("session.force_spinning_stop", "1")  # it takes turns with torch
        try:
            self._session = _open(ort, model, options)
        except EdgemmError:
            raise
        except Exception as error:
            raise _cannot_run(model, error) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """Returns the outputs of one call by name."""
        results = self._session.run(self._outputs, dict(feed))
        return dict(zip(self._outputs, results, strict=True))


def _open(ort: Any, model: ir.Model, options: Any) -> Any:
    with on_disk(model) as path:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _cannot_run(model: ir.Model, error: BaseException) -> ExportError:
    own = {(f.domain, f.name) for f in model.functions.values()}
    for node in model.graph.all_nodes():
        if node.domain not in _BUILTIN_DOMAINS and (node.domain, node.op_type) not in own:
            return ExportError(
                f"the operator {node.domain}.{node.op_type} (node '{node.name}') is no ONNX operator; "
                "ONNX Runtime cannot run it.",
                hint="export the model without custom operators",
            )
    return ExportError(
        f"ONNX Runtime cannot open the graph: {first_line(error)}.",
        hint="the message names the node; replace that operation in the model, or export with another --opset",
    )


@dataclass(frozen=True, slots=True)
class Proof:
    """What running a graph at several sizes has shown.

    Attributes:
        checked: Symbol -> sizes at which the graph gives what the reference gives.
        broken: Symbol -> why it is not open after all.
    """

    checked: Mapping[str, tuple[int, ...]]
    broken: Mapping[str, str]


def prove_sizes(
    run: OrtRunner, reference: Run, feeds: Feeds, tolerance: Tolerance, symbols: Sequence[str]
) -> Proof:
    """Runs the graph at two or more sizes of every open dimension and compares with the reference.

    A size that the reference itself refuses says nothing about the graph and is left out.
    """
    checked: dict[str, tuple[int, ...]] = {}
    broken: dict[str, str] = {}
    for symbol in symbols:
        good: list[int] = []
        refused = ""
        for size in _sizes_to_try(feeds, symbol):
            if len(good) >= 3 and symbol != BATCH:
                break
            feed = (
                feeds.call(size)
                if symbol == BATCH
                else feeds.call(2 if BATCH in symbols else 1, 0, {symbol: size})
            )
            try:
                expected = reference(feed)
            except Exception as error:
                refused = f"the model itself refuses {size}: {first_line(error)}"
                continue
            why = _difference(run, feed, expected, tolerance)
            if why:
                broken[symbol] = f"the ONNX graph {why} at {symbol} = {size}"
                break
            good.append(size)
        if symbol not in broken and len(good) < 2:
            broken[symbol] = refused or f"no second size to prove it with (only {good})"
        checked[symbol] = tuple(sorted(good))
    return Proof(checked, broken)


def _sizes_to_try(feeds: Feeds, symbol: str) -> list[int]:
    if symbol == BATCH:
        return list(_BATCHES)
    seen = feeds.seen(symbol)
    base = seen[-1]
    more = [base + 1, base * 2, base // 2, base - 1, base * 3]
    return list(dict.fromkeys([seen[0], base, *(s for s in more if s > 0)]))


def _difference(
    run: Callable[[Feed], Mapping[str, np.ndarray]], feed: Feed, expected: Feed, tolerance: Tolerance
) -> str:
    try:
        got = run(feed)
    except Exception as error:
        return f"fails ({first_line(error)})"
    report = ParityReport()
    report.add(expected, got, 0)
    if report.within(tolerance.absolute, tolerance.relative):
        return ""
    name, worst = report.worst()
    if got[name].shape != expected[name].shape:
        return f"gives '{name}' the shape {got[name].shape} instead of {expected[name].shape}"
    return f"is off by {worst.max_abs:.2g} in '{name}'"


def check_parity(
    run: OrtRunner,
    reference: Run,
    io: IOSpec,
    samples: Mapping[int, Sample] | None,
    feeds: Feeds,
    tolerance: Tolerance,
) -> ParityReport:
    """Returns how far the graph is from the reference, sample by sample.

    Args:
        run: The graph.
        reference: The model that it was made from.
        io: The graph's signature.
        samples: Index in the user's data -> sample; None compares on the rows of `feeds`.
        feeds: Where state inputs come from.
        tolerance: The largest difference that is still the same.

    Raises:
        ParityError: An output differs by more than the tolerance; the message names the worst output and sample.
    """
    report = ParityReport()
    first = feeds.call(io.batch if isinstance(io.batch, int) else 1)
    states = {name: np.zeros_like(first[name]) for name in io.state_inputs}
    indices = list(samples) if samples is not None else list(range(len(feeds.rows)))
    for index in indices:
        if samples is not None and io.batch in (BATCH, 1, None):
            row = {i.name: cast_row(i.dtype, np.asarray(samples[index][i.name])) for i in io.feed_inputs}
            feed = make_feed(io, [row]) | states
        else:
            feed = feeds.call(io.batch if isinstance(io.batch, int) else 1, index)
        report.add(reference(feed), run(feed), index)
    if not report.within(tolerance.absolute, tolerance.relative):
        name, worst = report.worst()
        raise ParityError(
            f"the ONNX graph does not compute what the model computes: output '{name}' differs by "
            f"{worst.max_abs:.3g} on sample {worst.worst_sample} (outputs reach {worst.scale:.3g}; allowed "
            f"{tolerance.absolute:g} + {tolerance.relative:g} of that).",
            hint="try another --opset; if it stays, look for the operation that differs with a smaller model",
        )
    return report
