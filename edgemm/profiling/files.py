"""Every measured inference as a file: CSV for tables, the Trace Event Format for Perfetto and Chrome.

The format of the trace: "Trace Event Format", Google, the JSON object form with complete (`X`) and metadata (`M`)
events. Times are microseconds.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from edgemm.profiling.record import Runs

COLUMNS = ("mode", "run", "stage", "start_ms", "duration_ms")

WHOLE = "end to end"
"""The stage of a row that is a whole call."""

MAX_TRACED = 20_000
"""Inferences of one mode in a trace, at most: viewers become slow with more."""


def write_csv(file: IO[bytes], measured: Sequence[Runs]) -> None:
    """Writes one row per run and stage, whole calls among them, in the order of their start.

    `start_ms` counts from the first run of the mode. A whole call starts when its input was there.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for runs in measured:
            writer.writerows(_rows(runs))
        text.flush()
    finally:
        text.detach()


def _rows(runs: Runs) -> Iterator[tuple[str, int, str, str, str]]:
    order = np.lexsort((runs.spans.start, runs.spans.run))
    at, count = 0, order.size
    for run in range(runs.count):
        yield runs.mode, run, WHOLE, _ms(runs.due[run]), _ms(runs.seconds[run])
        while at < count and runs.spans.run[order[at]] == run:
            span = order[at]
            name = runs.engines[int(runs.spans.engine[span])]
            yield runs.mode, run, name, _ms(runs.spans.start[span]), _ms(runs.spans.seconds[span])
            at += 1


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.6f}"


def write_trace(file: IO[bytes], measured: Sequence[Runs], name: str) -> None:
    """Writes the inferences as a trace: a process per mode, in it a row of whole calls and one per engine.

    Args:
        file: Where to.
        measured: What was measured; of each mode the last `MAX_TRACED` inferences.
        name: Of the model.
    """
    file.write(b'{"displayTimeUnit":"ms","otherData":')
    file.write(json.dumps({"model": name, "left out": left_out(measured)}).encode())
    file.write(b',"traceEvents":[\n')
    for number, event in enumerate(trace_events(measured, name)):
        file.write((b",\n" if number else b"") + json.dumps(event, ensure_ascii=False).encode())
    file.write(b"\n]}\n")


def left_out(measured: Sequence[Runs]) -> int:
    """Returns how many inferences a trace has no room for."""
    return sum(max(0, runs.count - MAX_TRACED) for runs in measured)


def trace_events(measured: Sequence[Runs], name: str) -> Iterator[dict[str, Any]]:
    """Yields the events of a trace.

    Args:
        measured: One process each, numbered from 1; thread 0 has whole calls, thread k the k-th engine.
        name: Of the model.
    """
    for process, runs in enumerate(measured, start=1):
        yield _name("process_name", process, 0, f"{name}: {runs.label}")
        for thread, label in enumerate(("inference", *runs.engines)):
            yield _name("thread_name", process, thread, label)
            yield {**_name("thread_sort_index", process, thread, ""), "args": {"sort_index": thread}}
        yield from _slices(process, runs)


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _slices(process: int, runs: Runs) -> Iterator[dict[str, Any]]:
    first = max(0, runs.count - MAX_TRACED)
    for run in range(first, runs.count):
        waited = float(runs.waited[run])
        arguments: dict[str, Any] = {"run": run, "sample": int(runs.samples[run])}
        if waited > 0:
            arguments["latency_us"] = round(float(runs.seconds[run]) * 1e6, 3)
            arguments["waited_us"] = round(waited * 1e6, 3)
        begin = float(runs.due[run]) + waited
        yield _slice("inference", process, 0, begin, float(runs.seconds[run]) - waited, arguments)
    for span in np.flatnonzero(runs.spans.run >= first).tolist():
        engine = int(runs.spans.engine[span])
        start, seconds = float(runs.spans.start[span]), float(runs.spans.seconds[span])
        yield _slice(runs.engines[engine], process, engine + 1, start, seconds, {"run": int(runs.spans.run[span])})


def _slice(
    name: str, process: int, thread: int, start: float, seconds: float, arguments: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": "edgemm",
        "ph": "X",
        "ts": round(start * 1e6, 3),
        "dur": round(max(seconds, 0.0) * 1e6, 3),
        "pid": process,
        "tid": thread,
        "args": arguments,
    }
