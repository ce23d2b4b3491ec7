"""What can be said of a model that is in no bundle, as the manifest of one stage and one engine."""

from __future__ import annotations

from pathlib import Path

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant
from edgemm.runtime.choice import TARGETS
from edgemm.runtime.session import EngineSession
from edgemm.tensors import BATCH, Dim, IOSpec, TensorSpec

SUFFIXES = (".engine", ".plan")
"""How TensorRT engine files are named."""


def is_engine_file(path: Path) -> bool:
    """Returns whether `path` is named like a TensorRT engine."""
    return path.suffix.lower() in SUFFIXES


def describe_onnx(file: Path, engine: EngineSession, backend: str) -> Manifest:
    """Returns what can be said of a bare ONNX file: one stage, each input its own modality."""
    batch, inputs = batch_of(engine.inputs, engine.outputs)
    names = tuple(i.name for i in inputs)
    io = IOSpec(inputs, engine.outputs, {name: name for name in names}, batch=batch)
    role = "encoder" if len(names) == 1 else "fusion head"
    stage = StageEntry(file.stem, names, role, inputs, engine.outputs, nodes=0, parameters=0)
    outputs = tuple(o.name for o in engine.outputs)
    entry = EngineEntry(file.stem, (file.stem,), file.name, names, outputs, {})
    size = file.stat().st_size
    target = next(name for name, runs in TARGETS.items() if runs == backend)
    variant = Variant("onnx", target, backend, "as is", "whole", (entry,), {}, size)
    return Manifest(file.stem, io, (stage,), (), (variant,))


def batch_of(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> tuple[Dim | None, tuple[TensorSpec, ...]]:
    """Returns the batch of a model that does not say, and its inputs.

    The batch is the one symbol that inputs have on axis 0, if an output has it there too. Unnamed sizes on axis 0
    of every input are taken for it. A size of 1 on axis 0 of everything is a fixed batch of 1; other fixed sizes
    may mean anything: no batch.
    """
    if inputs and all(i.shape and i.shape[0] == f"{i.name}:0" for i in inputs):
        return BATCH, tuple(TensorSpec(i.name, i.dtype, (BATCH, *i.shape[1:])) for i in inputs)
    symbols = {i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], str)}
    if len(symbols) == 1 and any(o.shape[:1] == tuple(symbols) for o in outputs):
        return symbols.pop(), inputs
    if all(len(t.shape) > 1 and t.shape[0] == 1 for t in (*inputs, *outputs)):
        return 1, inputs
    return None, inputs
