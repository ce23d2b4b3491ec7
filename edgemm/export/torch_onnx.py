"""Second step of `convert`: a loaded model becomes an ONNX graph whose every claim has been run.

Open dimensions are kept as far as the model allows, each proven at two or more sizes; the graph is compared with
torch on the samples. What ended fixed is reported with its reason.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgemm.data import Sample, Samples
from edgemm.errors import DataError
from edgemm.export.batching import Reopen, Subject, Tolerance, find_batching, fixed_batch_note
from edgemm.export.feeds import spread
from edgemm.export.model import LoadedModel
from edgemm.export.request import (
    DynamicDim,
    DynamicReport,
    ExportRequest,
    ExportResult,
    FixedDim,
    Progress,
    with_single_sizes,
)
from edgemm.export.sniff import ONNX
from edgemm.graph import ExportedGraph
from edgemm.tensors import TensorSpec

if TYPE_CHECKING:
    from edgemm.export.program import TorchProgram

__all__ = ["DynamicDim", "DynamicReport", "ExportRequest", "ExportResult", "FixedDim", "Progress", "export_model"]


def export_model(
    loaded: LoadedModel, request: ExportRequest, samples: Samples | None, progress: Progress
) -> ExportResult:
    """Returns `loaded` as an ONNX graph with a signature, proven against the model.

    Args:
        loaded: The model.
        request: What the user declared.
        samples: Calibration samples: they give shapes, show which sizes vary, and are what parity is checked on
            (at most 64, evenly spread). None checks on random inputs and says so.
        progress: Called with a short text at every step.

    Raises:
        ExportError: The model cannot be converted, a size that the data shows varying cannot stay open, or ONNX
            Runtime cannot run the graph; the message names the layer or dimension.
        ParityError: The graph does not compute what the model computes.
        DataError: The samples do not fit the model's inputs.
        RecipeError: The request contradicts the model.
    """
    taken = {index: samples[index] for index in spread(samples)} if samples is not None else {}
    if loaded.kind == ONNX:
        from edgemm.export.onnx_file import adopt_onnx

        return adopt_onnx(loaded, request, taken, progress)
    return _export_torch(loaded, request, taken, progress)


def _export_torch(
    loaded: LoadedModel, request: ExportRequest, samples: Mapping[int, Sample], progress: Progress
) -> ExportResult:
    from edgemm.export.describe import describe, provenance
    from edgemm.export.ladder import climb
    from edgemm.export.program import build_program, states_of
    from edgemm.export.verify import check_parity

    tolerance = Tolerance(request.absolute_tolerance, request.relative_tolerance)
    rows = list(samples.values())
    program = build_program(loaded, request.inputs, rows[0] if rows else None)
    _check_saved_sizes(program.inputs, rows)
    progress("running the model in torch")
    states, likely = states_of(program, rows, request.states)
    subject = Subject(program.run, program.inputs, program.examples, rows, states)
    batching = find_batching(subject, tolerance, _reopener(program))
    outcome = climb(program, batching, request, progress)
    io = describe(outcome.inputs, outcome.outputs, request, states, outcome.batch)
    progress(f"comparing with torch on {len(rows) or len(outcome.feeds.rows)} samples")
    parity = check_parity(outcome.runner, program.run, io, samples or None, outcome.feeds, tolerance)
    notes = loaded.notes + program.notes
    if batching.reopened:
        notes += (
            "the file was saved for one batch size; the batch was opened, and single runs and batches agree",
        )
    notes += tuple(
        f"input '{s.input}' comes back as output '{s.output}': to keep it between calls, declare "
        f"--state {s.input}={s.output}"
        for s in likely
    )
    notes += fixed_batch_note(batching)
    if not rows:
        notes += ("parity was checked on synthetic inputs: pass --calib to check on real ones",)
    graph = ExportedGraph(outcome.model, io, provenance(loaded, outcome.model))
    dynamic = with_single_sizes(outcome.dynamic, io)
    return ExportResult(graph, dynamic, parity, notes)


def _check_saved_sizes(inputs: Sequence[TensorSpec], rows: Sequence[Sample]) -> None:
    """Refuses data that has one size where the file was saved for another.

    Sizes that change from sample to sample are no mistake: the graph is opened for them, or refused with a reason.

    Raises:
        DataError: Naming the input, the axis and both sizes.
    """
    for spec in inputs:
        shapes = [np.shape(row[spec.name]) for row in rows if spec.name in row]
        if not shapes or any(len(shape) != len(spec.shape) - 1 for shape in shapes):
            continue
        for axis, saved in list(enumerate(spec.shape))[1:]:
            sizes = {shape[axis - 1] for shape in shapes}
            if isinstance(saved, int) and len(sizes) == 1 and saved not in sizes:
                raise DataError(
                    f"input '{spec.name}', axis {axis}: the data has the size {sizes.pop()}, the model was saved "
                    f"for {saved}.",
                    hint="prepare the data as for training, or save it again with that axis open (dynamic_shapes)",
                )


def _reopener(program: TorchProgram) -> Reopen | None:
    """Returns what opens a batch that torch.export wrote into a program, if `program` is one."""
    from edgemm.export.flatten import FlatProgram
    from edgemm.export.reopen import reopen_batch

    module = program.module
    return functools.partial(reopen_batch, module) if isinstance(module, FlatProgram) else None
