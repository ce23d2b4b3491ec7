"""From an engine file to an execution context, with whatever the installed TensorRT has for it."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgemm.errors import BackendError, UnsupportedDeviceError
from edgemm.runtime._cuda.calls import Cuda
from edgemm.runtime._trt.module import MESSAGES, has, is_rtx, logger, title
from edgemm.runtime._trt.sidecar import Sidecar
from edgemm.runtime.session import SessionOptions

_log = logging.getLogger("edgemm")

_NOISE = "CUDA driver version is insufficient"


def load_engine(
    trt: Any, file: Path, sidecar: Sidecar, content: bytes, options: SessionOptions
) -> tuple[Any, Any]:
    """Returns TensorRT's runtime and the engine in `content`, read from `file`, which its sidecar has verified.

    Raises:
        BackendError: TensorRT does not start or refuses the engine, or an option is not available.
        UnsupportedDeviceError: The engine was built by another version.
    """
    _check_version(trt, sidecar, file.name)
    log = logger(trt)
    mark = len(log.messages)
    try:
        if has(trt, "init_libnvinfer_plugins") and not is_rtx(trt):
            trt.init_libnvinfer_plugins(log, "")
        runtime = trt.Runtime(log)
    except (TypeError, RuntimeError) as error:
        raise BackendError(
            f"{title(trt)} does not start: {said(trt, mark) or error}.",
            hint="check the driver with nvidia-smi; TensorRT and CUDA must fit each other",
        ) from error
    if sidecar.options.get("strip_weights"):
        raise BackendError(
            f"engine '{file.name}' has no weights in it, and edgemm does not put them in.",
            hint="build the engine without strip_weights",
        )
    if sidecar.options.get("version_compatible") and has(trt, "Runtime.engine_host_code_allowed"):
        runtime.engine_host_code_allowed = (
            True  # the lean runtime in the engine; the sidecar's digest vouches for it
        )
    core = sidecar.options.get("dla_core")
    if core is not None:
        runtime.DLA_core = core
    try:
        engine = runtime.deserialize_cuda_engine(content)
    except (RuntimeError, TypeError, MemoryError) as error:
        raise _refused(trt, file, mark) from error
    if engine is None:
        raise _refused(trt, file, mark)
    if options.weight_streaming is not None:
        _stream_weights(trt, engine, options.weight_streaming, file.name)
    return runtime, engine


def make_context(
    trt: Any, engine: Any, options: SessionOptions, cuda: Cuda, kept: tuple[str, Path | None]
) -> tuple[Any, Any]:
    """Returns an execution context, and the runtime cache that it fills (TensorRT-RTX), None without one.

    Args:
        trt: The TensorRT module.
        engine: Of that module.
        options: Of the session.
        cuda: The GPU.
        kept: Name of the engine, and the file of its runtime cache, None to keep none.

    Raises:
        BackendError: TensorRT gives none, mostly for want of memory.
    """
    name, file = kept
    mark = len(logger(trt).messages)
    needed = (
        engine.device_memory_size_v2
        if has(trt, "ICudaEngine.device_memory_size_v2")
        else engine.device_memory_size
    )
    free = cuda.free_memory()
    cache = None
    try:
        if has(trt, "IRuntimeConfig.set_runtime_cache"):
            config = engine.create_runtime_config()
            if options.cuda_graphs:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if file is not None:
                cache = config.create_runtime_cache()
                _fill(cache, file)
                config.set_runtime_cache(cache)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
    except (RuntimeError, TypeError, MemoryError) as error:
        raise _no_context(trt, name, mark, needed, free) from error
    if context is None:
        raise _no_context(trt, name, mark, needed, free)
    return context, cache


def cache_file(folder: Path, engine: str, sidecar: Sidecar, where: str) -> Path:
    """Returns where kernels that TensorRT-RTX compiled on this machine are kept.

    Args:
        folder: The bundle's cache.
        engine: File name of the engine.
        sidecar: Of the engine.
        where: What the kernels are for besides: version of TensorRT-RTX and name of the GPU.
    """
    digest = hashlib.sha256(f"{sidecar.sha256} {where}".encode()).hexdigest()[:12]
    return folder / f"{Path(engine).stem}.{digest}.runtime-cache"


def keep_cache(cache: Any, file: Path) -> None:
    """Writes what `cache` holds, if it differs from `file`. A cache is no reason to fail: errors are logged."""
    try:
        content = bytes(memoryview(cache.serialize()))
        if not content or (file.is_file() and file.read_bytes() == content):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            os.replace(name, file)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except (OSError, RuntimeError, TypeError) as error:
        _log.warning("the runtime cache '%s' is not kept: %s", file.name, str(error))


def said(trt: Any, mark: int) -> str:
    """Returns the first error that TensorRT logged after its first `mark` messages, or nothing."""
    messages = logger(trt).messages
    late = messages[mark if mark < MESSAGES else -1 :]  # a full log has lost its beginning
    found = [text for severity, text in late if severity != "WARNING" and _NOISE not in text]
    return " ".join(found[0].split())[:500].rstrip(".") if found else ""


def _fill(cache: Any, file: Path) -> None:
    """Reads a kept cache; one that does not load is thrown away."""
    try:
        content = file.read_bytes()
    except OSError:
        return
    try:
        loaded = cache.deserialize(content)
    except (RuntimeError, TypeError):
        loaded = False
    if loaded is False:
        _log.info("the runtime cache '%s' does not load and is made again", file.name)
        with suppress(OSError):
            file.unlink()


def _check_version(trt: Any, sidecar: Sidecar, name: str) -> None:
    version = str(trt.__version__)
    if version == sidecar.version or sidecar.options.get("version_compatible"):
        return
    raise UnsupportedDeviceError(
        f"engine '{name}' was built by {sidecar.flavour} {sidecar.version}, here is {version}.",
        hint="build it again on this device: edgemm build BUNDLE",
    )


def _refused(trt: Any, file: Path, mark: int) -> BackendError:
    return BackendError(
        f"{title(trt)} does not load engine '{file.name}': {said(trt, mark) or 'it gave no reason'}.",
        hint="build it again on this device: edgemm build BUNDLE",
    )


def _no_context(trt: Any, name: str, mark: int, needed: int, free: int) -> BackendError:
    return BackendError(
        f"{title(trt)} makes no execution context for engine '{name}', which needs {needed / 2**20:,.0f} MiB "
        f"({free / 2**20:,.0f} MiB are free): {said(trt, mark) or 'it gave no reason'}.",
        hint="free memory on the GPU, or build the engine with smaller largest shapes",
    )


def _stream_weights(trt: Any, engine: Any, budget: int, name: str) -> None:
    if not has(trt, "ICudaEngine.weight_streaming_budget_v2"):
        raise BackendError(
            f"{title(trt)} has no weight streaming.", hint="leave weight_streaming out, or update TensorRT"
        )
    most = engine.streamable_weights_size
    if not most:
        raise BackendError(
            f"engine '{name}' was not built for weight streaming.",
            hint="leave weight_streaming out, or build the engine with weight_streaming",
        )
    engine.weight_streaming_budget_v2 = min(budget, most)
