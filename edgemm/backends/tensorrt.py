"""Builds TensorRT engines: classic TensorRT 8.6 to 11 on the GPU at hand, TensorRT-RTX for any of its GPUs.

    BuildRequest ─build_engine▶ EngineBuild: ENGINE and ENGINE.json, its sidecar

The build runs in a process of its own: TensorRT may take minutes, crash, or keep memory. Its parts are in
`edgemm.backends._trt`; what the session needs as well is in `edgemm.runtime._trt`.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from edgemm.backends._trt.onnx_file import Weights, read_onnx
from edgemm.backends._trt.process import Progress, Supervision, run_worker
from edgemm.backends._trt.profiles import SizeRange, check_profiles, make_profiles, observed_sizes
from edgemm.backends._trt.request import BuildOptions, BuildRequest
from edgemm.errors import BackendError
from edgemm.runtime._trt.sidecar import (
    LayerPrecision,
    OptimizationProfile,
    Sidecar,
    dumps,
    read_sidecar,
    sidecar_file,
)

__all__ = [
    "BuildOptions",
    "BuildRequest",
    "EngineBuild",
    "LayerPrecision",
    "OptimizationProfile",
    "Progress",
    "Sidecar",
    "SizeRange",
    "Supervision",
    "Weights",
    "build_engine",
    "check_profiles",
    "make_profiles",
    "observed_sizes",
    "read_sidecar",
    "sidecar_file",
]


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """An engine that was built.

    Attributes:
        engine: The engine's file.
        sidecar: What its sidecar says.
        warnings: What TensorRT found worth a word.
    """

    engine: Path
    sidecar: Sidecar
    warnings: tuple[str, ...] = ()


def build_engine(request: BuildRequest, watch: Supervision | None = None) -> EngineBuild:
    """Returns the engine of `request`, built by a process of its own; it takes seconds to minutes.

    Engine and sidecar are renamed into place when they are whole. After any failure, Ctrl-C included, there is
    what was there before.

    Raises:
        BackendError: The graph or an option is refused, the process crashed, took too long or was cancelled, or
            the engine is not what the plan says; the message names stage, modalities and ONNX node.
        RecipeError: A profile contradicts the graph.
        MissingExtraError: The TensorRT module does not import.
    """
    request = request.resolved()
    check_profiles(read_onnx(request.onnx).inputs, request.profiles)
    output = request.engine.with_name(f".{request.engine.name}.{secrets.token_hex(8)}.tmp")
    side = output.with_name(f"{output.name}.json")
    if not request.engine.parent.is_dir():
        raise request.fail(f"the folder '{request.engine.parent}' does not exist.", "make it first: mkdir -p")
    try:
        built = run_worker(request, output, watch or Supervision())
        sidecar = Sidecar.from_json(built["sidecar"])
        side.write_bytes(dumps(sidecar))
        os.replace(output, request.engine)
        os.replace(side, sidecar_file(request.engine))
    except OSError as error:
        raise BackendError(
            f"{request.where}: {error.filename or request.engine}: {error.strerror or error}.",
            hint="free some space there, or choose another folder",
        ) from error
    finally:
        output.unlink(missing_ok=True)
        side.unlink(missing_ok=True)
    return EngineBuild(request.engine, sidecar, tuple(built["warnings"]))
