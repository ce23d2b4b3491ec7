"""A build from start to end, in this process: ONNX file ─▶ network ─▶ engine file and what its sidecar says."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgemm.backends._trt import proof
from edgemm.backends._trt.config import (
    Report,
    configure,
    has_timing_cache,
    keep_timing_cache,
    use_timing_cache,
    watch,
)
from edgemm.backends._trt.messages import builder_failure, warnings_of
from edgemm.backends._trt.network import (
    check_precisions,
    io_specs,
    layer_precisions,
    make_builder,
    parse,
    strongly_typed,
    tensor_dtypes,
    totals,
    type_weakly,
)
from edgemm.backends._trt.onnx_file import OnnxFile, read_onnx
from edgemm.backends._trt.profiles import check_profiles
from edgemm.backends._trt.request import BuildRequest
from edgemm.runtime._trt.module import logger, title
from edgemm.runtime._trt.sidecar import Sidecar


def silent(phase: str, step: int, steps: int) -> None:
    """Reports nothing."""


def build_plan(
    trt: Any, request: BuildRequest, output: Path, report: Report = silent
) -> tuple[Sidecar, tuple[str, ...]]:
    """Writes the engine to `output`, and returns its sidecar and TensorRT's warnings.

    Args:
        trt: The `tensorrt` or `tensorrt_rtx` module.
        request: What to build.
        output: Where to write; the request's own path is not touched.
        report: Called with every step.

    Raises:
        BackendError: The parser or the builder refuses the graph, an option is not available, or the engine is
            not what the plan says.
        RecipeError: A profile contradicts the graph.
        OSError: The engine cannot be written.
    """
    start = time.perf_counter()
    report("read", 0, 1)
    onnx = read_onnx(request.onnx)
    check_profiles(onnx.inputs, request.profiles)
    builder = make_builder(trt, request)
    report("parse", 0, 1)
    network, parser = parse(trt, builder, onnx, request)
    layers, dtypes = layer_precisions(network), tensor_dtypes(network)
    check_precisions(dtypes, onnx, request)
    proof.check_network(layers, dtypes, onnx, request)
    config = configure(trt, builder, network, request)
    if not strongly_typed(trt):
        type_weakly(trt, network, config, onnx, dtypes)
    watch(trt, config, report)
    report("build", 0, 1)
    plan = _build(trt, builder, network, config, onnx, request)
    del parser  # it holds weights that the network points to
    report("write", 0, 1)
    size, digest = _write(plan, output)
    counted = totals(layers)
    limit = proof.check_size(size, onnx.weights, sum(counted.values()), request)
    inputs, outputs = io_specs(network, onnx)
    sidecar = Sidecar(
        flavour=request.module,
        version=str(trt.__version__),
        compute_capabilities=request.compute_capabilities,
        device=dict(request.device),
        stage=request.stage,
        modalities=request.modalities,
        inputs=inputs,
        outputs=outputs,
        profiles=request.profiles,
        onnx_sha256=onnx.sha256,
        options=asdict(request.options),
        typing="strong" if strongly_typed(trt) else "weak",
        layers=layers,
        precisions=counted,
        weights=asdict(onnx.weights),
        size=size,
        size_limit=limit,
        sha256=digest,
        seconds=round(time.perf_counter() - start, 3),
    )
    return sidecar, warnings_of(logger(trt).messages)


def _build(trt: Any, builder: Any, network: Any, config: Any, onnx: OnnxFile, request: BuildRequest) -> Any:
    """Returns the serialized engine; keeps kernel timings where there is a cache."""
    cache = request.timing_cache if has_timing_cache(trt) else None
    if cache is not None:
        use_timing_cache(trt, config, cache)
    log = logger(trt)
    before = list(log.messages)
    log.messages.clear()
    plan = _guarded(lambda: builder.build_serialized_network(network, config), request, title(trt))
    if plan is None:
        raise builder_failure(log.messages, onnx, request, title(trt))
    log.messages[:0] = before
    if cache is not None:
        try:
            keep_timing_cache(config, cache)
        except OSError as error:  # no reason to throw the engine away
            log.messages.append(("WARNING", f"timing cache '{cache.name}' is not kept: {error.strerror or error}"))
    return plan


def _guarded(build: Callable[[], Any], request: BuildRequest, who: str) -> Any:
    try:
        return build()
    except (RuntimeError, TypeError, MemoryError) as error:
        raise request.fail(
            f"{who} stopped while it built the engine: {error or type(error).__name__}.",
            "give the build more memory, or a lower optimization level",
        ) from error


def _write(plan: Any, output: Path) -> tuple[int, str]:
    """Returns size and digest of what was written."""
    view = memoryview(plan)
    with output.open("wb") as stream:
        stream.write(view)
        stream.flush()
        os.fsync(stream.fileno())
    return view.nbytes, hashlib.sha256(view).hexdigest()
