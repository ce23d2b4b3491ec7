"""Options of ONNX Runtime's GPU providers, set from an engine's plan. Values are text, as the providers read them.

Names and formats are those of ONNX Runtime's documentation, "NVIDIA - TensorRT", "CUDA" and "NVIDIA - TensorRT RTX
Execution Provider", and of the provider options of NVIDIA's TensorRT-RTX-EP-ABI.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemm.tensors import ShapeRange

Options = dict[str, str]

_FLAGS = {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable", "int8": "trt_int8_enable"}
"""Precision of a graph -> the option without which the provider's weakly typed networks refuse its tensors."""

_WHICH = ("min", "opt", "max")


def cuda_options(plan: Mapping[str, Any], device: int = 0) -> Options:
    """Returns the options of `CUDAExecutionProvider`.

    Args:
        plan: `EngineEntry.options` of a graph; its `build` may ask for no TensorFloat-32.
        device: Index of the GPU.
    """
    chosen = {"device_id": str(device), "enable_cuda_graph": "0"}
    if plan.get("build", {}).get("tf32") is False:
        chosen["use_tf32"] = "0"
    return chosen


def tensorrt_options(plan: Mapping[str, Any], device: int = 0, cache: Path | None = None) -> Options:
    """Returns the options of `TensorrtExecutionProvider`.

    The graph decides about precision, by Q/DQ and casts; a precision that it does not have stays off, so that
    TensorRT does not choose it by itself.

    Args:
        plan: `EngineEntry.options` of a graph: `precisions`, `profiles`, and options of the builder in `build`.
        device: Index of the GPU.
        cache: Folder for engines and kernel timings; None keeps none.
    """
    build = plan.get("build", {})
    chosen = {
        "device_id": str(device),
        "trt_cuda_graph_enable": "False",
        "trt_fp16_enable": "False",
        "trt_int8_enable": "False",
    }
    chosen |= {_FLAGS[p]: "True" for p in plan.get("precisions", ()) if p in _FLAGS}
    chosen |= _profile_shapes(plan, "trt_profile")
    if build.get("workspace") is not None:
        chosen["trt_max_workspace_size"] = str(build["workspace"])
    if build.get("optimization_level") is not None:
        chosen["trt_builder_optimization_level"] = str(build["optimization_level"])
    if build.get("sparse_weights"):
        chosen["trt_sparsity_enable"] = "True"
    if build.get("hardware_compatibility") == "ampere-plus":
        chosen["trt_engine_hw_compatible"] = "True"
    if build.get("dla_core") is not None:
        chosen |= {"trt_dla_enable": "True", "trt_dla_core": str(build["dla_core"])}
    if cache is not None:
        chosen |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
    return chosen


def rtx_options(plan: Mapping[str, Any], device: int = 0, cache: Path | None = None) -> Options:
    """Returns the options of `NvTensorRTRTXExecutionProvider`, whose networks take their types from the graph.

    Args:
        plan: `EngineEntry.options` of a graph.
        device: Index of the GPU.
        cache: Folder for kernels that are compiled on the device; None keeps none.
    """
    chosen = {"device_id": str(device), "enable_cuda_graph": "0"} | _profile_shapes(plan, "nv_profile")
    if len(plan.get("profiles", ())) > 1 and "nv_profile_min_shapes" in chosen:
        chosen["nv_multi_profile_enable"] = "1"
    workspace = plan.get("build", {}).get("workspace")
    if workspace is not None:
        chosen["nv_max_workspace_size"] = str(workspace)
    if cache is not None:
        chosen["nv_runtime_cache_path"] = str(cache)
    return chosen


def _profile_shapes(plan: Mapping[str, Any], prefix: str) -> Options:
    """Returns smallest, usual and largest shapes as `"a:1x4,b:1x8"`; an input is repeated for every profile.

    Names that the format cannot hold leave the shapes out: the provider then makes profiles from what it is fed.
    """
    texts: dict[str, list[str]] = {which: [] for which in _WHICH}
    for profile in plan.get("profiles", ()):
        for name, sizes in profile["shapes"].items():
            if ":" in name or "," in name:
                return {}
            shape = ShapeRange(*(tuple(sizes[which]) for which in _WHICH))
            for which in _WHICH:
                texts[which].append(f"{name}:{'x'.join(map(str, getattr(shape, which)))}")
    return {f"{prefix}_{which}_shapes": ",".join(found) for which, found in texts.items() if found}
