"""Opens a bundle, or a bare ONNX file, for running."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, read_manifest, verify
from edgemm.errors import (
    BackendError,
    BundleError,
    EdgemmError,
    MissingExtraError,
    UnsupportedDeviceError,
    did_you_mean,
)
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.registry import session_class
from edgemm.runtime.session import EngineSession, SessionOptions
from edgemm.tensors import BATCH, Dim, IOSpec, TensorSpec

AUTO = "auto"
"""The target that takes the first variant that this machine can run."""

_log = logging.getLogger("edgemm")


def open_session(
    path: str | os.PathLike[str], *, target: str = AUTO, threads: int | None = None, variant: str | None = None
) -> FusionSession:
    """Returns a session on a bundle or a bare ONNX file.

    Every file of a bundle is verified against its manifest before any is loaded. In a bare ONNX file every input
    is a modality of its own and the whole graph is one stage.

    Args:
        path: A folder that `edgemm convert` wrote, or an `.onnx` file.
        target: What to run on, for example `"cpu"`; `"auto"` takes the first shipped variant that this machine
            can run. A variant whose backend is not installed, or whose precision the processor lacks, is passed
            over with a warning in the log `edgemm`.
        threads: Most threads inside one operator; None lets each engine and its backend decide.
        variant: Name of the variant to open; None lets `target` decide.

    Raises:
        BundleError: No such bundle, a damaged or unsafe one, or one without such a target or variant.
        BackendError: An engine does not open on this device.
        UnsupportedDeviceError: This machine lacks what every candidate asks for.
        MissingExtraError: No backend of the candidates is installed.
    """
    if threads is not None and threads < 0:
        raise BackendError(f"threads: got {threads}, expected 0 or more.", hint="0 lets the backend decide")
    options = SessionOptions(threads=threads or 0, spinning=True)
    path = Path(path)
    if path.is_file():
        return _open_onnx(path, target, options)
    manifest = read_manifest(path)
    candidates = _candidates(manifest, target, variant)
    verify(path, manifest)
    first: EdgemmError | None = None
    for candidate, following in zip(candidates, [*candidates[1:], None], strict=True):
        try:
            return open_variant(path, manifest, candidate, options.threads)
        except (MissingExtraError, UnsupportedDeviceError) as error:
            first = first or error
            if following is not None:
                _log.warning("%s: trying '%s' instead of '%s': %s", path, following.name, candidate.name, error)
    assert first is not None
    raise first


def open_variant(folder: Path, manifest: Manifest, variant: Variant, threads: int = 0) -> FusionSession:
    """Returns a session on one variant whose files lie below `folder` and are trusted.

    `open_session` verifies a bundle and then comes here; a conversion that tries variants before there is a
    bundle comes here directly. A lone engine keeps the backend's own threading; the pools of several engines would
    take the cores from each other, so theirs rest between runs.

    Raises:
        BackendError: An engine does not open on this device.
        UnsupportedDeviceError: This machine lacks what an engine asks for.
        BundleError: An engine takes or gives something else than the manifest says.
        MissingExtraError: The backend of the variant is not installed.
    """
    options = SessionOptions(threads=threads, spinning=len(variant.engines) == 1)
    return _chain(manifest, variant, _open_engines(folder, variant, options))


def _chain(manifest: Manifest, variant: Variant, engines: list[EngineSession]) -> FusionSession:
    try:
        return FusionSession(manifest, variant, engines)
    except BaseException:
        for engine in engines:
            engine.close()
        raise


def _open_engines(path: Path, variant: Variant, options: SessionOptions) -> list[EngineSession]:
    engines: list[EngineSession] = []
    try:
        for entry in variant.engines:
            engine_class = session_class(entry.backend)
            engines.append(engine_class(path / entry.file, options.for_engine(entry.options)))
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines


def _candidates(manifest: Manifest, target: str, variant: str | None) -> list[Variant]:
    """Returns the variants that may be opened, the preferred one first."""
    if variant is not None:
        return [_named(manifest, variant)]
    shipped = manifest.shipped
    targets = list(dict.fromkeys(v.target for v in shipped))
    if target == AUTO:
        return list(shipped)
    found = [v for v in shipped if v.target == target]
    if not found:
        raise BundleError(
            f"no target '{target}' in this bundle (targets: {', '.join(targets)}).",
            hint=did_you_mean(target, targets, "use one of these, or convert the model for this target"),
        )
    return found


def _named(manifest: Manifest, name: str) -> Variant:
    for variant in manifest.variants:
        if variant.name == name:
            if variant.refused is not None or not variant.engines:
                raise BundleError(
                    f"the variant '{name}' was not shipped: {variant.refused or 'it has no engines'}.",
                    hint=f"open one of these: {', '.join(v.name for v in manifest.shipped)}",
                )
            return variant
    names = [v.name for v in manifest.shipped]
    raise BundleError(
        f"no variant '{name}' in this bundle (variants: {', '.join(names)}).",
        hint=did_you_mean(name, names, "use one of these"),
    )


def _open_onnx(file: Path, target: str, options: SessionOptions) -> FusionSession:
    if target not in (AUTO, "cpu"):
        raise BundleError(
            f"{file}: an ONNX file runs on the target 'cpu', not on '{target}'.",
            hint=f"make a bundle for it: edgemm convert {file.name} -o OUT.edgemm",
        )
    engine = session_class("onnxruntime")(file, options)
    manifest = _describe(file, engine)
    return _chain(manifest, manifest.variants[0], [engine])


def _describe(file: Path, engine: EngineSession) -> Manifest:
    """Returns what can be said of a bare ONNX file: one stage, each input its own modality."""
    batch, inputs = _batch(engine.inputs, engine.outputs)
    names = tuple(i.name for i in inputs)
    io = IOSpec(inputs, engine.outputs, {name: name for name in names}, batch=batch)
    role = "encoder" if len(names) == 1 else "fusion head"
    stage = StageEntry(file.stem, names, role, inputs, engine.outputs, nodes=0, parameters=0)
    outputs = tuple(o.name for o in engine.outputs)
    entry = EngineEntry(file.stem, (file.stem,), file.name, names, outputs, {})
    size = file.stat().st_size
    variant = Variant("onnx", "cpu", "onnxruntime", "as is", "whole", (entry,), {}, size)
    return Manifest(file.stem, io, (stage,), (), (variant,))


def _batch(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> tuple[Dim | None, tuple[TensorSpec, ...]]:
    """Returns the batch of a bare ONNX file and its inputs.

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
