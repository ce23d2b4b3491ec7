"""Scores and times what the peers made: every model of a fixture in this process, interleaved."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from benchmarks.fixtures import Fixture
from benchmarks.peers.produce import Produced, Task
from edgemm.data import open_samples
from edgemm.metrics import choose_output, collect_labels, collect_outputs, metric, score
from edgemm.pipeline.timing import latency_feeds
from edgemm.runtime import open_session
from edgemm.runtime.latency import ratio
from edgemm.runtime.turns import time_sessions
from edgemm.tensors import Feed, IOSpec

FLOAT = "float"
"""The row that the others are compared with: plain float ONNX Runtime."""


class Engine(Protocol):
    """One model, loaded."""

    def call(self, feed: Feed) -> list[np.ndarray]:
        """Returns the outputs in the model's order."""
        ...


class OnnxEngine:
    """A model in one ONNX Runtime session with default options, and so many threads."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads != os.cpu_count():  # which is the default
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(self, feed: Feed) -> list[np.ndarray]:
        """Returns the outputs in the model's order."""
        outputs: list[np.ndarray] = self._session.run(None, dict(feed))
        return outputs


class OpenVinoEngine:
    """A model compiled by OpenVINO for latency, and so many threads; the precision is OpenVINO's choice.

    Threads are not pinned, as in edgemm's own OpenVINO sessions: other sessions run on the same cores.
    """

    def __init__(self, path: Path, threads: int) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports the import
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def call(self, feed: Feed) -> list[np.ndarray]:
        """Returns the outputs in the model's order."""
        return list(self._request.infer(dict(feed), share_inputs=True).values())


class Runner:
    """An engine as a session: outputs by the names of the signature, states carried from call to call."""

    def __init__(self, engine: Engine, io: IOSpec) -> None:
        self._engine, self._io = engine, io
        kept = io.state_inputs
        zeros = [i for i in io.inputs if i.name in kept]
        self._first = {i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], i.dtype) for i in zeros}
        self._states: Mapping[str, np.ndarray] = self._first

    def reset_state(self) -> None:
        """Starts from zeros again."""
        self._states = self._first

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Returns the outputs by name."""
        values = self._engine.call({**self._states, **feed})
        outputs = {o.name: value for o, value in zip(self._io.outputs, values, strict=True)}
        self._states = {s.input: outputs[s.output] for s in self._io.states}
        return outputs

    def run_timed(self, feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns what `run` returns, and no times of parts."""
        return self.run(feed), {}


def open_runner(path: Path, io: IOSpec, threads: int, stack: ExitStack) -> Any:
    """Returns a session on an `.onnx`, an `.xml` or a bundle; `stack` closes it."""
    if path.is_dir():
        return stack.enter_context(open_session(path, threads=threads, cache="off"))
    return Runner((OpenVinoEngine if path.suffix == ".xml" else OnnxEngine)(path, threads), io)


def measure(
    task: Task, produced: Mapping[str, Produced], threads: tuple[int, ...], seconds: float
) -> dict[str, dict[str, Any]]:
    """Returns what was measured, by row: accuracy, agreement and by number of threads the latency.

    Args:
        task: The fixture.
        produced: Row -> its model; one of them is `FLOAT`.
        threads: Numbers of threads to time with.
        seconds: Length of one interleaved measurement.

    A model that does not load or run gets `failure`, and has no part in the timing.
    """
    rows: dict[str, dict[str, Any]] = {name: {} for name in produced}
    paths = {name: p.path for name, p in produced.items() if p.path is not None}
    outputs: dict[str, dict[str, np.ndarray]] = {}
    samples = open_samples(str(task.fixture.eval))
    for name, path in paths.items():
        try:
            with ExitStack() as stack:
                runner = open_runner(path, task.io, max(threads), stack)
                outputs[name] = collect_outputs(runner.run, task.io, samples, batch=1, reset=runner.reset_state)
        except Exception as error:  # whatever the engine says of a peer's model is its row
            rows[name]["failure"] = f"does not run: {' '.join(str(error).split())[:250]}"
    if FLOAT not in outputs:
        raise RuntimeError(f"{task.fixture.name}: the float model {rows[FLOAT].get('failure')}")
    for name in outputs:
        rows[name] |= _scores(task.fixture, task.io, outputs[name], outputs[FLOAT])
    feeds = latency_feeds(task.io, samples, {})
    for count in threads:
        with ExitStack() as stack:
            runners = {name: open_runner(paths[name], task.io, count, stack) for name in outputs}
            timings = time_sessions(runners, feeds, seconds=seconds)
        for name, timing in timings.items():
            found = ratio(timing.total, timings[FLOAT].total)
            latency = {"ms": timing.ms, "ratio": found.value, "ratio_95": [found.low, found.high]}
            rows[name].setdefault("latency", {})[str(count)] = latency | {"runs": timing.total.runs}
    return rows


def _scores(
    fixture: Fixture, io: IOSpec, outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    output = choose_output(io, None)
    agreement = score(metric("agreement"), outputs, output, labels=None, reference=reference)
    if fixture.metric is None or fixture.label is None:
        return {"metric": None, "accuracy": None, "agreement": agreement}
    labels = collect_labels(open_samples(str(fixture.eval)), fixture.label)
    accuracy = score(metric(fixture.metric), outputs, output, labels=labels, reference=None)
    return {"metric": fixture.metric, "accuracy": accuracy, "agreement": agreement}
