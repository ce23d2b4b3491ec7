"""Calibration: the float stages run over the samples, and a calibrator watches every tensor that may be int8.

Memory does not grow with the number of samples: samples stream in small batches, calibrators keep a fixed amount
per tensor, and tensors are watched in groups whose values fit a budget. A model too large to watch at once is run
over the samples once per group.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm._optional import require
from edgemm.data import Sample, Samples, batches, hash_sample, make_feed
from edgemm.errors import BackendError, QuantizationError
from edgemm.graph import digest, serialize
from edgemm.partition import Stage, StageGraph
from edgemm.quant.calibrators import Calibrator, calibrator_class
from edgemm.quant.placement import tensors_to_calibrate
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import table_key
from edgemm.tensors import BATCH, IOSpec

BUDGET = 256 * 2**20
"""Bytes of watched values that one call may hold."""

LARGEST_BATCH = 16
_PROBE = 64
_PROTOBUF_LIMIT = 2**31 - 2**24

Progress = Callable[[int, int], None]


def collect(
    stage_graph: StageGraph, io: IOSpec, samples: Samples, calibrator: str, progress: Progress | None = None
) -> CalibrationTable:
    """Returns a range for every tensor that a plan may quantize, keyed `stage:tensor`.

    The result does not depend on the batch size, and for models without a state not on the order of the samples.
    States are carried from sample to sample, as the device will.

    Args:
        stage_graph: The float stages; chained, they compute the model.
        io: The model's signature.
        samples: Checked calibration samples.
        calibrator: A name in `calibrators.CALIBRATORS`.
        progress: Called with (samples done, samples to do) after every batch.

    Raises:
        QuantizationError: No samples, or no such calibrator.
        BackendError: ONNX Runtime cannot run a stage; the message names it.
    """
    make = calibrator_class(calibrator)
    if len(samples) == 0:
        raise QuantizationError(
            "no calibration samples.", hint="int8 needs real data (--calib); ranges are never made up"
        )
    wanted = {s.name: tensors_to_calibrate(s) for s in stage_graph.stages}
    sizes = _probe(stage_graph, io, samples, wanted)
    passes = _group({k: n for k, n in sizes.items()}, BUDGET)
    watchers: dict[str, Calibrator[Any]] = {}
    sha = hashlib.sha256()
    for number, group in enumerate(passes):
        chain = _Chain(stage_graph, io, group)
        size = max(1, min(LARGEST_BATCH, BUDGET // max(1, sum(sizes[k] for k in group))))
        done = 0
        for rows, feed in _feeds(io, samples, size):
            if number == 0:
                for row in rows:
                    hash_sample(sha, row)
            for (stage, tensor), value in chain.run(feed):
                if value.dtype == np.float32 and value.size:
                    key = table_key(stage, tensor)
                    watchers.setdefault(key, make()).observe(_by_sample(value, _fed(feed, io)))
            done += len(rows)
            if progress is not None:
                progress(number * len(samples) + done, len(passes) * len(samples))
    ranges = {key: found for key in sorted(watchers) if (found := watchers[key].range()) is not None}
    graphs = hashlib.sha256("".join(digest(s.model) for s in stage_graph.stages).encode()).hexdigest()
    return CalibrationTable(ranges, calibrator, len(samples), graphs, sha.hexdigest())


def _feeds(io: IOSpec, samples: Samples, size: int) -> Iterator[tuple[list[Sample], dict[str, np.ndarray]]]:
    """Yields batches as the raw graph takes them: one row at a time with a state, whole fixed batches."""
    if not isinstance(io.batch, int) or io.batch == 1:
        yield from batches(io, samples, 1 if io.states else size)
        return
    for start in range(0, len(samples), io.batch):
        rows = [samples[i] for i in range(start, min(start + io.batch, len(samples)))]
        filled = rows + [rows[-1]] * (io.batch - len(rows))
        yield rows, make_feed(io, filled)


def _fed(feed: Mapping[str, np.ndarray], io: IOSpec) -> int:
    """Samples in this feed, as the graph sees them."""
    return next((len(feed[i.name]) for i in io.feed_inputs if i.shape and i.shape[0] == io.batch), 1)


def _by_sample(value: np.ndarray, count: int) -> np.ndarray:
    """Axis 0 as samples, where the tensor has them in front; otherwise all of it is one sample."""
    if value.ndim and count > 1 and value.shape[0] % count == 0:
        return value.reshape(count, -1)
    return value.reshape(1, -1)


Tap = tuple[str, str]
"""Stage name, tensor name."""


class _Chain:
    """Float stages in order, as ONNX Runtime sessions that also give the tapped tensors."""

    def __init__(self, stage_graph: StageGraph, io: IOSpec, taps: list[Tap]) -> None:
        self._io = io
        self._state: dict[str, np.ndarray] = {}
        wanted: dict[str, list[str]] = {}
        for stage, tensor in taps:
            wanted.setdefault(stage, []).append(tensor)
        self._stages = [_TappedStage.open(s, wanted.get(s.name, [])) for s in stage_graph.stages]

    def run(self, feed: Mapping[str, np.ndarray]) -> Iterator[tuple[Tap, np.ndarray]]:
        """Yields every tapped tensor of one call, and keeps the states for the next."""
        values = dict(feed)
        for state in self._io.states:
            if state.input not in values:
                values[state.input] = self._state.get(state.input, self._zeros(state.input, feed))
        for stage in self._stages:
            yield from stage.run(values)
        self._state = {s.input: values[s.output] for s in self._io.states}

    def _zeros(self, name: str, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        spec = self._io.input(name)
        count = _fed(feed, self._io)
        shape = [d if isinstance(d, int) else count if d == BATCH else 0 for d in spec.shape]
        return np.zeros(shape, spec.dtype)


@dataclass(frozen=True, slots=True)
class _TappedStage:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[str, ...]
    session: Any

    @classmethod
    def open(cls, stage: Stage, taps: list[str]) -> _TappedStage:
        model = stage.model.clone()
        graph = model.graph
        given = {str(v.name): v for v in graph.inputs}
        outputs = [str(v.name) for v in graph.outputs]
        values = {str(v.name): v for node in graph for v in node.outputs}
        for name in taps:
            if name not in outputs and name not in given:
                value = values[name]
                if value.type is None:
                    value.type = ir.TensorType(ir.DataType.FLOAT)
                graph.outputs.append(value)
        try:
            session = open_float_session(model)
        except Exception as error:
            raise BackendError(
                f"stage '{stage.name}': ONNX Runtime cannot open it for calibration: {error}",
                hint="check that the exported model runs: edgemm run on a --precision fp32 bundle",
            ) from error
        return cls(stage.name, tuple(given), tuple(outputs), tuple(taps), session)

    def run(self, values: dict[str, np.ndarray]) -> Iterator[tuple[Tap, np.ndarray]]:
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


def open_float_session(model: ir.Model) -> Any:
    """Returns an onnxruntime session on `model` for this machine's CPU.

    A model beyond protobuf's 2 GB goes through a temporary file with its weights beside it.
    """
    ort = require("onnxruntime", extra="cpu", why="run the model for calibration")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights < _PROTOBUF_LIMIT:
        return ort.InferenceSession(serialize(model), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="edgemm-calibrate-") as folder:
        path = Path(folder) / "stage.onnx"
        ir.save(model, path, external_data="stage.onnx.data")
        return ort.InferenceSession(str(path), options, providers=providers)


def _probe(
    stage_graph: StageGraph, io: IOSpec, samples: Samples, wanted: Mapping[str, tuple[str, ...]]
) -> dict[Tap, int]:
    """Bytes per sample of every tensor, from one call with a few taps at a time."""
    taps = [(stage, tensor) for stage, tensors in wanted.items() for tensor in tensors]
    _, feed = next(_feeds(io, samples, 1))
    count = _fed(feed, io)
    sizes: dict[Tap, int] = {}
    for start in range(0, len(taps), _PROBE):
        chain = _Chain(stage_graph, io, taps[start : start + _PROBE])
        sizes |= {tap: max(1, value.nbytes // count) for tap, value in chain.run(feed)}
    return sizes


def _group(sizes: Mapping[Tap, int], budget: int) -> list[list[Tap]]:
    """Tensors in order, divided so that one sample's values of each group fit the budget (or are one tensor)."""
    groups: list[list[Tap]] = [[]]
    total = 0
    for tap, size in sizes.items():
        if groups[-1] and total + size > budget:
            groups.append([])
            total = 0
        groups[-1].append(tap)
        total += size
    return groups
