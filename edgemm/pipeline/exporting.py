"""The first steps of `convert`: load and export. A large model is exported by a process of its own.

torch, the model in it and what the exporter leaves behind take more memory than everything that follows; they end
with that process. A small model is exported in this one, which takes less time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from edgemm import errors
from edgemm.compare import ParityReport
from edgemm.data import Source
from edgemm.errors import DataError, EdgemmError, ExportError
from edgemm.export.model import LoadedModel, ModelSource, load_model
from edgemm.export.request import DynamicReport, ExportRequest, ExportResult
from edgemm.export.sniff import ONNX, sniff
from edgemm.export.torch_onnx import export_model
from edgemm.graph import ExportedGraph, load, write_mapped
from edgemm.pipeline.preprocessing import read_preprocessing
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.splits import open_splits
from edgemm.recipe import Recipe
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

LARGE = 64 * 2**20
"""Bytes of a model file from which on another process exports it."""

_CHILD = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from edgemm.pipeline.exporting import child
child()
"""
_REQUEST, _RESULT, _GRAPH = "request.json", "result.json", "exported.onnx"


def request_of(recipe: Recipe) -> ExportRequest:
    """Returns what a recipe says about the model's inputs and export."""
    inputs = recipe.inputs.items()
    return ExportRequest(
        inputs=tuple(TensorSpec(n, i.dtype, i.sizes) for n, i in inputs if i.sizes is not None),
        modalities={n: i.modality for n, i in inputs if i.modality is not None},
        states=tuple(StateSpec(i, o) for i, o in recipe.states.items()),
        opset=recipe.export.opset,
        absolute_tolerance=recipe.export.absolute_tolerance,
        relative_tolerance=recipe.export.relative_tolerance,
    )


def export(recipe: Recipe, samples: Source | None, folder: Path, progress: Progress, clock: Clock) -> ExportResult:
    """Returns the exported model of a recipe.

    Args:
        recipe: Its sections `model`, `inputs`, `states`, `export` and `data` count.
        samples: What `recipe.data` names, opened.
        folder: Where the graph of a large model is left, to be mapped.
        progress: Told when the model is loaded, and about every part of the export.
        clock: Seconds of both steps.

    Raises:
        EdgemmError: What is wrong with the model, the samples or the export.
    """
    path = recipe.model.path
    if sniff(path) != ONNX and path.stat().st_size >= LARGE:
        return _Exporter(recipe, folder, progress, clock).run()
    with clock("load"):
        loaded = load_model(ModelSource(path, recipe.model.factory, recipe.model.allow_pickle))
    progress.step("load", _load_line(loaded))
    with clock("export"):
        return _export(loaded, recipe, samples, lambda text: progress.status("export", text))


def _load_line(loaded: LoadedModel) -> str:
    return f"{loaded.path.name}: {loaded.kind}, {loaded.parameters:,} parameters"


def _export(
    loaded: LoadedModel, recipe: Recipe, samples: Source | None, progress: Callable[[str], None]
) -> ExportResult:
    """Returns the exported graph; what is wrong with the samples is said with the name of their file."""
    found = read_preprocessing(recipe, samples)
    samples = found.for_model(samples)
    try:
        return export_model(loaded, request_of(recipe), samples, progress)
    except (DataError, ExportError) as error:
        hint = found.hint(error)
        if samples is None or str(error).startswith(samples.origin) or isinstance(error, ExportError):
            raise type(error)(str(error), hint=hint) from error
        raise DataError(f"{samples.origin}: {error}", hint=hint) from error


@dataclass(frozen=True, slots=True)
class _Report:
    """What the other process answers with: an `ExportResult` without its graph, or an error."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="constants")

    io: IOSpec | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    dynamic: DynamicReport | None = None
    parity: ParityReport | None = None
    notes: tuple[str, ...] = ()
    error: tuple[str, str, str] | None = None

    def result(self, model: Path) -> ExportResult:
        """Returns what the process found, with its graph; raises its error."""
        if self.error is not None:
            kind, message, hint = self.error
            raise getattr(errors, kind)(message, hint=hint)
        assert self.io is not None
        assert self.dynamic is not None
        assert self.parity is not None
        graph = ExportedGraph(load(model), self.io, self.provenance)
        return ExportResult(graph, self.dynamic, self.parity, self.notes)


_reports = TypeAdapter(_Report)


@dataclass(frozen=True, slots=True)
class _Exporter:
    """The other process, seen from here. It says what it does in lines of JSON: [step, text]."""

    recipe: Recipe
    folder: Path
    progress: Progress
    clock: Clock

    def run(self) -> ExportResult:
        (self.folder / _REQUEST).write_text(self.recipe.model_dump_json())
        command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(self.folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        try:
            assert process.stdout is not None
            lines = iter(process.stdout)
            with self.clock("load"):
                self._tell(next(lines, ""))
            with self.clock("export"):
                for line in lines:
                    self._tell(line)
                code = process.wait()
        finally:
            process.kill()
            process.communicate()
        if code != 0:
            raise ExportError(
                f"{self.recipe.model.path.name}: the process that exports it ended with status {code}.",
                hint="what it wrote above says why; a negative status is a signal, -9 mostly a lack of memory",
            )
        return _reports.validate_json((self.folder / _RESULT).read_bytes()).result(self.folder / _GRAPH)

    def _tell(self, line: str) -> None:
        step, text = json.loads(line or '["", ""]')
        if step == "load":
            self.progress.step(step, text)
        elif step:
            self.progress.status(step, text)


def child() -> None:
    """Exports what `sys.argv[2]`, a folder, has a request for. What the model prints goes to stderr."""
    folder = Path(sys.argv[2])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(step: str, text: str) -> None:
        print(json.dumps([step, text]), file=out, flush=True)

    try:
        recipe = Recipe.model_validate_json((folder / _REQUEST).read_text())
        loaded = load_model(ModelSource(recipe.model.path, recipe.model.factory, recipe.model.allow_pickle))
        tell("load", _load_line(loaded))
        found = _export(loaded, recipe, open_splits(recipe.data).any, lambda text: tell("export", text))
        write_mapped(found.graph.model, folder / _GRAPH)
        graph = found.graph
        report = _Report(graph.io, dict(graph.provenance), found.dynamic, found.parity, found.notes)
    except EdgemmError as error:
        report = _Report(error=(type(error).__name__, str(error), error.hint))
    except KeyboardInterrupt:
        sys.exit(130)
    (folder / _RESULT).write_bytes(_reports.dump_json(report))
