"""Calibration: the float stages run over the samples, and a calibrator watches every tensor that may be int8.

Memory does not grow with the number of samples: samples stream in small batches, calibrators keep a fixed amount
per tensor, and tensors are watched in groups whose values fit a budget. A model too large to watch at once is run
over the samples once per group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgemm.data import Samples, hash_sample
from edgemm.errors import QuantizationError
from edgemm.graph import digest
from edgemm.partition import Stage, StageGraph
from edgemm.quant.calibrators import Calibrator, calibrator_class
from edgemm.quant.chain import Chain, Tap, fed, feeds
from edgemm.quant.coverage import TensorCoverage
from edgemm.quant.partial import Partial
from edgemm.quant.placement import tensors_to_calibrate
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import activated_output, table_key
from edgemm.tensors import IOSpec

BUDGET = 64 * 2**20
"""Bytes of watched values that one call may hold."""

LARGEST_BATCH = 16
_PROBE = 64

Progress = Callable[[int, int], None]


def collect(
    stage_graph: StageGraph,
    io: IOSpec,
    samples: Samples,
    calibrator: str,
    progress: Progress | None = None,
    tensors: Callable[[Stage], tuple[str, ...]] = tensors_to_calibrate,
) -> CalibrationTable:
    """Returns a range for every tensor that a plan may quantize, keyed `stage:tensor`, and the coverage.

    The ranges do not depend on the batch size, and for models without a state not on the order of the samples.
    States are carried from sample to sample, as the device will.

    Args:
        stage_graph: The float stages; chained, they compute the model.
        io: The model's signature.
        samples: Checked calibration samples.
        calibrator: A name in `calibrators.CALIBRATORS`.
        progress: Called with (samples done, samples to do) after every batch.
        tensors: Names the tensors of a stage that are watched.

    Raises:
        QuantizationError: No samples, or no such calibrator.
        BackendError: ONNX Runtime cannot run a stage; the message names it.
    """
    return observe(stage_graph, io, samples, calibrator, progress, tensors).table()


def observe(
    stage_graph: StageGraph,
    io: IOSpec,
    samples: Samples,
    calibrator: str,
    progress: Progress | None = None,
    tensors: Callable[[Stage], tuple[str, ...]] = tensors_to_calibrate,
) -> Partial:
    """Returns what a calibrator observes on `samples`: to be merged with other parts, or saved.

    Raises:
        EdgemmError: As `collect`.
    """
    make = calibrator_class(calibrator)
    if len(samples) == 0:
        raise QuantizationError(
            "no calibration samples.", hint="int8 needs real data (--calib); ranges are never made up"
        )
    wanted = {s.name: tensors(s) for s in stage_graph.stages}
    axes = {s.name: _channel_axes(s) for s in stage_graph.stages}
    sizes = _probe(stage_graph, io, samples, wanted)
    passes = group_taps(sizes, BUDGET)
    watchers: dict[str, Calibrator[Any]] = {}
    coverage: dict[str, TensorCoverage] = {}
    first = (len(samples) + 1) // 2
    sha = hashlib.sha256()
    for number, group in enumerate(passes):
        chain = Chain(stage_graph, io, group)
        size = max(1, min(LARGEST_BATCH, BUDGET // max(1, sum(sizes[k] for k in group))))
        done = 0
        for rows, feed in feeds(io, samples, size):
            if number == 0:
                for row in rows:
                    hash_sample(sha, row)
            for (stage, tensor), value in chain.taps(feed):
                if value.dtype == np.float32 and value.size:
                    key = table_key(stage, tensor)
                    if key not in watchers:
                        watchers[key], coverage[key] = make(), TensorCoverage(axes[stage].get(tensor, -1), first)
                    value = _by_sample(value, fed(feed, io))
                    watchers[key].observe(value.reshape(len(value), -1))
                    coverage[key].observe(value)
            done += len(rows)
            if progress is not None:
                progress(number * len(samples) + done, len(passes) * len(samples))
    graphs = hashlib.sha256("".join(digest(s.model) for s in stage_graph.stages).encode()).hexdigest()
    modalities = {table_key(s.name, t): s.modalities for s in stage_graph.stages for t in wanted[s.name]}
    return Partial(calibrator, watchers, coverage, modalities, len(samples), graphs, (sha.hexdigest(),))


def _channel_axes(stage: Stage) -> dict[str, int]:
    """Returns the axis of the channels, without the batch axis, for tensors whose reader or producer says so.

    A convolution has them in front; everything else in the last axis.
    """
    axes: dict[str, int] = {}
    for node in stage.model.graph:
        if node.op_type in ("Conv", "ConvTranspose"):
            behind = activated_output(node)
            axes |= {str(v.name): 0 for v in (node.inputs[0], node.outputs[0], behind) if v is not None}
    return axes


def _by_sample(value: np.ndarray, count: int) -> np.ndarray:
    """Axis 0 as samples, where the tensor has them in front; otherwise all of it is one sample."""
    if value.ndim and count > 1 and value.shape[0] % count == 0:
        return value if value.shape[0] == count else value.reshape(count, -1, *value.shape[1:])
    return value if value.ndim > 1 and value.shape[0] == 1 else value[None]


def _probe(
    stage_graph: StageGraph, io: IOSpec, samples: Samples, wanted: Mapping[str, tuple[str, ...]]
) -> dict[Tap, int]:
    """Bytes per sample of every tensor, from one call with a few taps at a time."""
    taps = [(stage, tensor) for stage, tensors in wanted.items() for tensor in tensors]
    _, feed = next(feeds(io, samples, 1))
    count = fed(feed, io)
    sizes: dict[Tap, int] = {}
    for start in range(0, len(taps), _PROBE):
        chain = Chain(stage_graph, io, taps[start : start + _PROBE])
        sizes |= {tap: max(1, value.nbytes // count) for tap, value in chain.taps(feed)}
    return sizes


def group_taps(sizes: Mapping[Tap, int], budget: int) -> list[list[Tap]]:
    """Returns the tensors in order, in groups of which one sample fits the budget (or that are one tensor)."""
    groups: list[list[Tap]] = [[]]
    total = 0
    for tap, size in sizes.items():
        if groups[-1] and total + size > budget:
            groups.append([])
            total = 0
        groups[-1].append(tap)
        total += size
    return groups
