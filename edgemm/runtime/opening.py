"""Opens a bundle, or a bare ONNX file, for running."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from edgemm.bundle import CACHE, EngineEntry, Manifest, Schedule, Variant, read_manifest, verify
from edgemm.errors import (
    BackendError,
    BundleError,
    DataError,
    EdgemmError,
    MissingExtraError,
    UnsupportedDeviceError,
    did_you_mean,
)
from edgemm.runtime import cuda
from edgemm.runtime._trt.built import built_engines
from edgemm.runtime._trt.engines import Gpu
from edgemm.runtime.bare import describe_onnx, is_engine_file
from edgemm.runtime.cache import CACHE_BYTES, CacheMode, check_mode
from edgemm.runtime.chain import ON_DEVICE, check_engines, device_outputs, make_steps
from edgemm.runtime.choice import (
    AUTO,
    ON_CPU,
    TARGETS,
    TENSORRT,
    Candidate,
    Choice,
    PassedOver,
    candidates,
    nothing_runs,
)
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.gate import check_limit
from edgemm.runtime.heads import open_heads
from edgemm.runtime.raw import load_raw
from edgemm.runtime.registry import session_class
from edgemm.runtime.schedule import SEQUENTIAL, Chain, divide, kept_schedule, open_lanes
from edgemm.runtime.session import EngineSession, SessionOptions
from edgemm.runtime.stand_ins import load_stand_ins

BUILDER = "edgemm.backends.device:build_missing"
"""What builds engines on this machine; loaded only when a caller allows it."""

NO_BFLOAT16 = "ONNX Runtime's CPU provider has no bfloat16 arithmetic"

_log = logging.getLogger("edgemm")


def open_session(
    path: str | os.PathLike[str],
    *,
    target: str = AUTO,
    threads: int | None = None,
    variant: str | None = None,
    build: bool = False,
    cache: CacheMode = "auto",
    cache_bytes: int = CACHE_BYTES,
    max_in_flight: int | None = None,
    options: SessionOptions | None = None,
) -> FusionSession:
    """Returns a session on a bundle, a bare ONNX file, or a TensorRT engine with its sidecar.

    Every file of a bundle is verified against its manifest before any is loaded. In a bare ONNX file every input
    is a modality of its own and the whole graph is one stage.

    With `"auto"` the best of what this machine can run is taken: a TensorRT engine that was built for this graph,
    GPU and TensorRT; else one that is built now, if `build` allows it; else the same graph on ONNX Runtime's
    TensorRT or CUDA provider; else what was made for the CPU. What was chosen, and why nothing better, is in
    `session.choice` and in the log `edgemm`.

    Args:
        path: A folder that `edgemm convert` wrote, an `.onnx` file, or an `.engine` or `.plan` with the sidecar
            that `edgemm build` wrote beside it.
        target: What to run on, for example `"cpu"` or `"jetson-orin-nano"`. Nothing else is tried then: for a
            TensorRT target an engine that does not fit this machine is an error. `"ort-tensorrt"` and `"cuda"` run
            the graphs on ONNX Runtime's providers.
        threads: Most threads inside one operator, and of engines that run at the same time together; None lets
            each engine and its backend decide.
        variant: Name of the variant to open; None lets `target` decide.
        build: Whether TensorRT engines that are missing may be built, which takes minutes and is kept in the
            bundle. See `edgemm build`.
        cache: What makes `run` reuse the outputs of an engine. `"content"`: what it reads is byte for byte what it
            was in the call before. `"auto"`: the same, where comparing takes less time than running the encoders,
            which the first calls measure. `"marks"`: `run(feed, changed=...)` says so. `"off"`: nothing, every
            engine runs. What is reused is exact in every mode. Of a model that is one engine, nothing can be.
        cache_bytes: The most that is held for it; see `FusionSession.cache_info`.
        max_in_flight: How many calls may be under way at once; one more waits for its turn. None sets no limit.
            See `FusionSession.limit_calls`.
        options: What else engines are opened with: which GPU, CUDA graphs, weight streaming. Spinning, the cache's
            folder and what stays on the GPU are decided here.

    Raises:
        BundleError: No such bundle, a damaged or unsafe one, or one without such a target or variant.
        DataError: No such `cache`, or a limit below 1.
        BackendError: An engine does not open on this device.
        UnsupportedDeviceError: This machine lacks what every candidate asks for.
        MissingExtraError: No backend of the candidates is installed.
    """
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 0):
        raise BackendError(f"threads: got {threads!r:.40}, expected 0 or more.", hint="0 lets the backend decide")
    check_mode(cache, cache_bytes)
    check_limit(max_in_flight)
    path = Path(path)
    given = options or SessionOptions()
    given = replace(given, threads=given.threads if threads is None else threads)
    session = _open(path, target, given, variant, build=build, reuse=cache != "off")
    session.use_cache(cache, cache_bytes)
    session.limit_calls(max_in_flight)
    session.reopen = partial(
        open_session, target=target, threads=threads, variant=variant, build=build, options=options
    )
    if cache in ("content", "marks") and (note := session.cache_info().note):
        _log.warning("%s: cache='%s' does nothing: %s", path, cache, note)
    return session


_MODELS = (".pt2", ".pt", ".pth", ".safetensors", ".ckpt", ".py", ".yaml", ".yml")
"""Suffixes of what is converted, not run."""


def _open(
    path: Path, target: str, options: SessionOptions, variant: str | None, *, build: bool, reuse: bool
) -> FusionSession:
    if path.is_file():
        if path.suffix.lower() in (".npz", ".npy", ".csv", ".parquet"):
            raise BundleError(
                f"{path}: got samples, expected a bundle, an .onnx file, or a TensorRT engine.",
                hint=f"name the model, and these as --data {path.name}",
            )
        if path.suffix.lower() in _MODELS:
            raise BundleError(
                f"{path}: got a '{path.suffix}' file, expected a bundle, an .onnx file, or a TensorRT engine.",
                hint=f"make a bundle of it: edgemm convert {path.name} -o OUT.edgemm",
            )
        open_file = _open_engine if is_engine_file(path) else _open_onnx
        return open_file(path, target, replace(options, spinning=True))
    manifest = read_manifest(path)
    queue = candidates(manifest, target, variant, build=build)
    verify(path, manifest)
    failed: list[tuple[Candidate, EdgemmError]] = []
    gpu = _GpuAtHand(options.device)
    for candidate in queue:
        try:
            session = _open_candidate(path, manifest, candidate, options, gpu, reuse=reuse)
        except EdgemmError as error:
            if not _may_go_on(candidate, error):
                raise
            failed.append((candidate, error))
            continue
        if session.choice is not None:
            session.choice = replace(session.choice, passed_over=_passed_over(failed))
            _log.log(
                logging.WARNING if failed else logging.INFO, "%s: %s", path, "; ".join(session.choice.lines())
            )
        return session
    raise nothing_runs(path, failed)


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
    options = SessionOptions(threads=threads)
    return _open_candidate(
        folder, manifest, Candidate(variant, variant.backend), options, _GpuAtHand(), reuse=False
    )


class _GpuAtHand:
    """A GPU of this machine, looked for once: looking takes longer than opening a small bundle."""

    def __init__(self, device: int = 0) -> None:
        self._device = device
        self._found: Gpu | UnsupportedDeviceError | None = None

    def __call__(self) -> Gpu:
        """Returns it.

        Raises:
            UnsupportedDeviceError: There is none, or no driver.
        """
        if self._found is None:
            try:
                self._found = cuda.find_gpu(self._device)
            except UnsupportedDeviceError as error:
                brief = str(error).split(" (")[0].rstrip(".")  # it is said of every candidate
                self._found = UnsupportedDeviceError(f"{brief}.", hint=f"{error.hint}; details: edgemm doctor")
        if isinstance(self._found, UnsupportedDeviceError):
            raise self._found
        return self._found


def _open_candidate(
    folder: Path,
    manifest: Manifest,
    candidate: Candidate,
    options: SessionOptions,
    gpu: _GpuAtHand,
    *,
    reuse: bool,
) -> FusionSession:
    variant, files = candidate.variant, {}
    if candidate.needs_gpu:
        found = gpu()
        if candidate.build:
            _build(folder, variant.name)
            manifest = read_manifest(folder)
            variant = next(v for v in manifest.variants if v.name == variant.name)
        if candidate.backend == TENSORRT:
            files = built_engines(folder, manifest, variant, found)
    elif candidate.planned and any("bf16" in e.options.get("precisions", ()) for e in variant.engines):
        raise UnsupportedDeviceError(
            f"'{variant.name}' computes in bfloat16; {NO_BFLOAT16}.",
            hint="run it on a GPU, or open a variant for the CPU",
        )
    engines = tuple(
        replace(e, file=files.get(e.name, e.file), backend=_backend_of(e, candidate)) for e in variant.engines
    )
    stages = next((v for v in manifest.shipped if v.name == variant.reuse), None) if reuse else None
    if stages is None:
        session = _open_chain(folder, manifest, variant, engines, options)
    else:
        session = _open_chain(folder, manifest, stages, stages.engines, options, whole=variant)
        engines = (*stages.engines, *engines)
    with _given_back([session]):
        heads, own = open_heads(folder, manifest, session.variant, replace(options, spinning=False))
        session._engines += own  # it closes them
        session.stand_ins = load_stand_ins(folder, manifest, session.variant, heads)
        session.raw = load_raw(folder, manifest)
    opened = tuple(e.file for e in engines)
    session.choice = Choice(variant.name, candidate.backend, candidate.build, opened)
    return session


def _backend_of(entry: EngineEntry, candidate: Candidate) -> str:
    return candidate.backend if candidate.planned else entry.backend


def _build(folder: Path, variant: str) -> None:
    """Builds what a variant lacks; a bundle that cannot be written is what this machine lacks, not damage."""
    module, _, name = BUILDER.partition(":")
    build_missing = cast("Callable[..., Any]", getattr(importlib.import_module(module), name))
    try:
        build_missing(folder, variant=variant)
    except BundleError as error:
        raise UnsupportedDeviceError(str(error), hint=error.hint) from error


def _may_go_on(candidate: Candidate, error: EdgemmError) -> bool:
    """Returns whether to try the next candidate; a graph for TensorRT may run in another way, whatever failed."""
    if isinstance(error, BundleError):
        return False
    return candidate.planned or isinstance(error, (MissingExtraError, UnsupportedDeviceError))


def _passed_over(failed: Sequence[tuple[Candidate, EdgemmError]]) -> tuple[PassedOver, ...]:
    return tuple(PassedOver(c.variant.name, c.backend, str(error), error.hint) for c, error in failed)


def _open_chain(
    folder: Path,
    manifest: Manifest,
    variant: Variant,
    entries: Sequence[EngineEntry],
    options: SessionOptions,
    whole: Variant | None = None,
) -> FusionSession:
    """Returns a session on `entries`, the engines of `variant`; `whole` runs calls in which everything is new."""
    _check_schedule(options.schedule, [*entries, *(() if whole is None else whole.engines)])
    kept = kept_schedule(folder, variant.name) if len(entries) > 1 and options.schedule is None else None
    schedule = options.schedule or kept or variant.schedule or SEQUENTIAL
    on_gpu = any(e.backend in ON_DEVICE for e in entries)
    lanes = None if on_gpu else open_lanes(schedule, entries, options.threads)
    if lanes is None:
        schedule = replace(schedule, order="sequential")
    beside = () if whole is None else whole.engines
    engines = _open_engines(folder, manifest, (*entries, *beside), options, schedule)
    with _given_back(engines):
        own, others = engines[: len(entries)], engines[len(entries) :]
        step = None
        if whole is not None:
            check_engines(manifest, whole, others)
            (step,) = make_steps(manifest.io, whole, others)
        chain = Chain(make_steps(manifest.io, variant, own), lanes, step, schedule)
        return FusionSession(manifest, variant, engines, chain)


def _check_schedule(schedule: Schedule | None, entries: Sequence[EngineEntry]) -> None:
    """Checks a schedule that the caller gave.

    Raises:
        DataError: It is none, or has a share for what is no engine.
    """
    if schedule is None:
        return
    if not isinstance(schedule, Schedule):
        raise DataError(
            f"options.schedule: got {schedule!r:.60}, expected a Schedule.",
            hint="Schedule('parallel'), for example",
        )
    names = [entry.name for entry in entries]
    for name in schedule.shares:
        if name not in names:
            raise DataError(
                f"options.schedule: there is no engine '{name}' (engines: {', '.join(names)}).",
                hint=did_you_mean(name, names, "shares are by engine"),
            )


def _open_engines(
    folder: Path, manifest: Manifest, entries: Sequence[EngineEntry], options: SessionOptions, schedule: Schedule
) -> list[EngineSession]:
    spinning = len(entries) == 1 or schedule.idle == "spin"
    base = replace(options, spinning=spinning, cache=folder / CACHE)
    threads = divide(schedule, [e for e in entries if len(e.stages) == 1], options.threads)
    kept = device_outputs(manifest.io, entries)
    engines: list[EngineSession] = []
    with _given_back(engines):
        for entry in entries:
            given = replace(base, threads=threads.get(entry.name, options.threads))
            asked = replace(given.for_engine(entry.options), device_outputs=kept.get(entry.name, frozenset()))
            engines.append(session_class(entry.backend)(folder / entry.file, asked))
    return engines


@contextmanager
def _given_back(engines: Sequence[EngineSession | FusionSession]) -> Iterator[None]:
    """Closes the engines if anything fails."""
    try:
        yield
    except BaseException:
        for engine in engines:
            engine.close()
        raise


def _open_onnx(file: Path, target: str, options: SessionOptions) -> FusionSession:
    backend = ON_CPU if target == AUTO else TARGETS.get(target)
    if backend is None:
        raise BundleError(
            f"{file}: an ONNX file runs on the target 'cpu', not on '{target}' (targets: {', '.join(TARGETS)}).",
            hint=f"make a bundle for it: edgemm convert {file.name} -o OUT.edgemm",
        )
    engine = session_class(backend)(file, options)
    return _alone(file, describe_onnx(file, engine, backend), engine)


def _open_engine(file: Path, target: str, options: SessionOptions) -> FusionSession:
    from edgemm.runtime.engine_file import open_engine_file

    if target not in (AUTO, TENSORRT):
        raise BundleError(
            f"{file}: an engine file runs on the GPU that it was built for, not on '{target}'.",
            hint="leave the target out",
        )
    return _alone(file, *open_engine_file(file, options))


def _alone(file: Path, manifest: Manifest, engine: EngineSession) -> FusionSession:
    """Returns a session on one file without a bundle."""
    (variant,) = manifest.variants
    with _given_back([engine]):
        session = FusionSession(manifest, variant, [engine])
    session.choice = Choice(variant.name, variant.backend, built=False, engines=(file.name,))
    return session
