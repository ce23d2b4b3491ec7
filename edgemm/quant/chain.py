"""Stages run one after the other in ONNX Runtime, with their states, on samples: for calibration and the search.

The device has its own session (`edgemm.runtime`); this one can look inside a stage and swap single stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm._optional import require
from edgemm.data import Sample, Samples, batches, make_feed
from edgemm.errors import BackendError
from edgemm.graph import on_disk
from edgemm.partition import StageGraph
from edgemm.tensors import BATCH, Feed, IOSpec


def feeds(io: IOSpec, samples: Samples, size: int) -> Iterator[tuple[list[Sample], dict[str, np.ndarray]]]:
    """Yields batches as a raw graph takes them: one row at a time with a state, whole fixed batches.

    The last fixed batch is filled up with its last row.
    """
    if not isinstance(io.batch, int) or io.batch == 1:
        yield from batches(io, samples, 1 if io.states else size)
        return
    for start in range(0, len(samples), io.batch):
        rows = [samples[i] for i in range(start, min(start + io.batch, len(samples)))]
        filled = rows + [rows[-1]] * (io.batch - len(rows))
        yield rows, make_feed(io, filled)


def fed(feed: Mapping[str, np.ndarray], io: IOSpec) -> int:
    """Returns how many samples are in this feed, as the graph sees them."""
    return next((len(feed[i.name]) for i in io.feed_inputs if i.shape and i.shape[0] == io.batch), 1)


def filled(feed: Feed, io: IOSpec) -> Feed:
    """Returns one sample as the raw graph takes it: repeated where the batch is fixed; the first result counts."""
    if not isinstance(io.batch, int) or io.batch == 1:
        return feed
    return {n: np.repeat(v, io.batch // len(v), axis=0) if v.ndim else v for n, v in feed.items()}


Tap = tuple[str, str]
"""Stage name, tensor name."""


class Chain:
    """Stages in order, as ONNX Runtime sessions. They may also give tensors from inside (`taps`)."""

    def __init__(
        self,
        stage_graph: StageGraph,
        io: IOSpec,
        taps: Sequence[Tap] = (),
        opened: Mapping[str, OpenStage] | None = None,
    ) -> None:
        """Opens every stage that is not in `opened` (stage name -> session to use) as it is, in float.

        Raises:
            BackendError: ONNX Runtime cannot open a stage.
        """
        self._io = io
        self._state: dict[str, np.ndarray] = {}
        wanted: dict[str, list[str]] = {}
        for stage, tensor in taps:
            wanted.setdefault(stage, []).append(tensor)
        known = opened or {}
        self._stages = [
            known[s.name] if s.name in known else OpenStage.open(s.name, s.model, wanted.get(s.name, []))
            for s in stage_graph.stages
        ]

    def reset(self) -> None:
        """Forgets the states."""
        self._state = {}

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns every tensor between and behind the stages of one call, and keeps the states for the next.

        Raises:
            BackendError: ONNX Runtime fails in a stage.
        """
        values = dict(feed)
        for _ in self._steps(values):
            pass
        return values

    def taps(self, feed: Mapping[str, np.ndarray]) -> Iterator[tuple[Tap, np.ndarray]]:
        """Yields every tapped tensor of one call, and keeps the states for the next.

        Raises:
            BackendError: ONNX Runtime fails in a stage.
        """
        yield from self._steps(dict(feed))

    def _steps(self, values: dict[str, np.ndarray]) -> Iterator[tuple[Tap, np.ndarray]]:
        count = fed(values, self._io)
        for state in self._io.states:
            if state.input not in values:
                values[state.input] = self._state.get(state.input, self._zeros(state.input, count))
        for stage in self._stages:
            yield from stage.run(values)
        self._state = {s.input: values[s.output] for s in self._io.states}

    def _zeros(self, name: str, count: int) -> np.ndarray:
        spec = self._io.input(name)
        shape = [d if isinstance(d, int) else count if d == BATCH else 0 for d in spec.shape]
        return np.zeros(shape, spec.dtype)


@dataclass(frozen=True, slots=True)
class OpenStage:
    """One stage's session; `run` reads from and adds to a dict of tensors."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[str, ...]
    session: Any

    @classmethod
    def open(cls, name: str, model: ir.Model, taps: Sequence[str] = (), *, as_written: bool = False) -> OpenStage:
        """Returns the opened graph with `taps` as additional outputs; `model` is not changed.

        `as_written` leaves ONNX Runtime's graph optimizations out.

        Raises:
            BackendError: ONNX Runtime cannot open it.
        """
        model = model.clone()
        graph = model.graph
        given = {str(v.name): v for v in graph.inputs}
        outputs = [str(v.name) for v in graph.outputs]
        values = {str(v.name): v for node in graph for v in node.outputs}
        for tap in taps:
            if tap not in outputs and tap not in given:
                value = values[tap]
                if value.type is None:
                    value.type = ir.TensorType(ir.DataType.FLOAT)
                graph.outputs.append(value)
        try:
            session = open_session(model, arena=not taps, as_written=as_written)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"stage '{name}': ONNX Runtime cannot open it for calibration: {error}",
                hint="check that the exported model runs: edgemm run on a --precision fp32 bundle",
            ) from error
        return cls(name, tuple(given), tuple(outputs), tuple(taps), session)

    def run(self, values: dict[str, np.ndarray]) -> Iterator[tuple[Tap, np.ndarray]]:
        """Yields the tapped tensors after adding the stage's outputs to `values`.

        Raises:
            BackendError: ONNX Runtime fails; the message names the stage.
        """
        computed = [t for t in self.taps if t not in self.inputs and t not in self.outputs]
        names = [*self.outputs, *computed]
        try:
            results = self.session.run(names, {n: values[n] for n in self.inputs})
        except Exception as error:
            raise BackendError(
                f"stage '{self.name}': ONNX Runtime failed on a calibration sample: {error}",
                hint="the float model itself does not run on this sample",
            ) from error
        found = dict(zip(names, results, strict=True))
        values.update({n: found[n] for n in self.outputs})
        for tap in self.taps:
            yield (self.name, tap), found[tap] if tap in found else values[tap]


def open_session(model: ir.Model, *, arena: bool = True, as_written: bool = False) -> Any:
    """Returns an onnxruntime session on `model` for this machine's CPU; it maps the weights from a file.

    Args:
        model: The graph.
        arena: False gives memory back after every call: slower, for runs that look at many tensors.
        as_written: Compute every node by itself, as the graph says: graph optimizations change what Q/DQ with
            scales in half precision compute.

    Raises:
        BackendError: There is no room in the temporary folder.
    """
    ort = require("onnxruntime", extra="cpu", why="run the model for calibration")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with on_disk(model) as path:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
