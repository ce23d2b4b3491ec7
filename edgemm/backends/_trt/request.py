"""What is to be built: plain values that travel to the worker as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgemm.errors import BackendError
from edgemm.runtime._trt.sidecar import OptimizationProfile

PRECISIONS = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "fp8": "float8_e4m3fn",
    "int4": "int4",
    "fp4": "float4_e2m1fn",
}
"""Precision of a plan -> dtype of tensors that a network of it has."""

HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
"""Hardware compatibility -> member of `HardwareCompatibilityLevel`."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of the builder. What the installed TensorRT lacks is refused, never left out.

    Attributes:
        workspace: Largest scratch memory of a layer in bytes; None leaves TensorRT's default (the whole GPU).
        optimization_level: 0 (quick build) to 5 (quick engine); None leaves TensorRT's default, 3.
        tf32: Whether float32 products may be computed in TensorFloat-32.
        sparse_weights: Whether 2:4 sparse kernels may be used.
        version_compatible: The engine runs with newer TensorRT versions of the same major version.
        hardware_compatibility: None, or a key of `HARDWARE`: the engine runs on other GPUs as well.
        dla_core: Which deep learning accelerator runs the engine; None: the GPU.
        gpu_fallback: Layers that the accelerator lacks run on the GPU, instead of being an error.
        refit: Weights can be replaced afterwards.
        strip_weights: The engine has no weights; they are put in by a refit.
        weight_streaming: Weights may stay in host memory.
        detailed: The engine tells an inspector precision and kernel of each layer.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    tf32: bool = True
    sparse_weights: bool = False
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    dla_core: int | None = None
    gpu_fallback: bool = False
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    detailed: bool = True


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        onnx: The graph, with its precision in it: Q/DQ and casts.
        engine: Where the engine goes; its sidecar goes beside it. Its folder exists.
        module: `"tensorrt"` or `"tensorrt_rtx"`.
        stage: Name of the stage, for messages and the sidecar.
        modalities: Of the stage.
        compute_capabilities: What TensorRT-RTX builds for, for example `(86, 120)`. For classic TensorRT at most
            that of the GPU at hand, which it builds for in any case: it is written down.
        profiles: Shape ranges; none when every size is fixed.
        precisions: Keys of `PRECISIONS` that the plan put into the graph; a graph without them is an error.
        options: Of the builder.
        timing_cache: File that keeps kernel timings between builds; made when it is not there.
        device: Facts about the GPU at hand for the sidecar.
    """

    onnx: Path
    engine: Path
    module: str = "tensorrt"
    stage: str = "model"
    modalities: tuple[str, ...] = ()
    compute_capabilities: tuple[int, ...] = ()
    profiles: tuple[OptimizationProfile, ...] = ()
    precisions: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    timing_cache: Path | None = None
    device: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Stage and modalities for messages."""
        names = ", ".join(self.modalities)
        return f"stage '{self.stage}' ({names})" if names not in ("", self.stage) else f"stage '{self.stage}'"

    def fail(self, message: str, hint: str) -> BackendError:
        """Returns the error of this build."""
        return BackendError(f"{self.where}: {message}", hint=hint)

    def resolved(self) -> BuildRequest:
        """Returns the request with absolute paths: the worker has another working directory."""
        cache = self.timing_cache.absolute() if self.timing_cache is not None else None
        return replace(self, onnx=self.onnx.absolute(), engine=self.engine.absolute(), timing_cache=cache)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; `from_json` is its inverse."""
        return {
            "onnx": str(self.onnx),
            "engine": str(self.engine),
            "module": self.module,
            "stage": self.stage,
            "modalities": list(self.modalities),
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": [p.to_json() for p in self.profiles],
            "precisions": list(self.precisions),
            "options": asdict(self.options),
            "timing_cache": str(self.timing_cache) if self.timing_cache is not None else None,
            "device": dict(self.device),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildRequest:
        """Returns the request that `to_json` wrote."""
        cache = data["timing_cache"]
        return cls(
            onnx=Path(data["onnx"]),
            engine=Path(data["engine"]),
            module=data["module"],
            stage=data["stage"],
            modalities=tuple(data["modalities"]),
            compute_capabilities=tuple(data["compute_capabilities"]),
            profiles=tuple(OptimizationProfile.from_json(p) for p in data["profiles"]),
            precisions=tuple(data["precisions"]),
            options=BuildOptions(**data["options"]),
            timing_cache=Path(cache) if cache is not None else None,
            device=data["device"],
        )
