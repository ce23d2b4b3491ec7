"""What a built engine is for, and whether it may be used here. Reads sidecars, never an engine.

How engines are named and which graph they belong to is in `edgemm.bundle.engines`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemm.bundle.engines import KEY_DIGITS
from edgemm.bundle.engines import engine_path as engine_path
from edgemm.bundle.engines import engines_of as engines_of
from edgemm.runtime._trt.module import MODULES
from edgemm.runtime._trt.sidecar import OptimizationProfile, Sidecar

AMPERE = 80
"""The first compute capability of NVIDIA's Ampere, times ten."""

RTX = "tensorrt_rtx"
"""The module whose engines are for compute capabilities, not for one GPU."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU as engines know it.

    Attributes:
        name: As CUDA says it, for example `"Orin"` or `"NVIDIA GeForce RTX 3060"`.
        sm: Compute capability times ten: 8.7 is 87.
        multiprocessors: Number of its streaming multiprocessors: boards of one name may differ in it.
        memory: Bytes of its memory; of a Jetson the memory that it shares with the CPU.
        integrated: Whether it shares the memory of the CPU.
    """

    name: str
    sm: int
    multiprocessors: int
    memory: int
    integrated: bool


def engine_key(sidecar: Sidecar) -> str:
    """Returns the key of an engine: equal for engines that are for the same graph, options and device.

    It is the start of the SHA-256 of canonical JSON. The device counts for classic TensorRT only: an engine of
    TensorRT-RTX is for compute capabilities.
    """
    told = {} if sidecar.flavour == RTX else sidecar.device
    content = {
        "onnx_sha256": sidecar.onnx_sha256,
        "flavour": sidecar.flavour,
        "version": sidecar.version,
        "compute_capabilities": list(sidecar.compute_capabilities),
        "device": {name: told[name] for name in ("name", "multiprocessors") if name in told},
        "profiles": [p.to_json() for p in sidecar.profiles],
        "options": dict(sidecar.options),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def mismatch(
    sidecar: Sidecar, *, onnx_sha256: str, module: str, version: str, gpu: Gpu, options: Mapping[str, Any]
) -> str | None:
    """Returns why an engine must not be used here, in words that complete "the engine ...", or None if it may.

    Args:
        sidecar: Of the engine.
        onnx_sha256: Digest of the graph that is asked for.
        module: The TensorRT module that would run it.
        version: Of that module.
        gpu: What it would run on.
        options: `EngineEntry.options` of the graph: its `profiles`, and in `build` the options of the builder that
            were asked for.
    """
    return (
        other_plan(sidecar, onnx_sha256=onnx_sha256, module=module, options=options)
        or _other_version(sidecar, version)
        or _other_device(sidecar, gpu)
    )


def other_plan(sidecar: Sidecar, *, onnx_sha256: str, module: str, options: Mapping[str, Any]) -> str | None:
    """Returns why no device would use an engine for what a plan asks, in words as `mismatch`, or None."""
    if sidecar.onnx_sha256 != onnx_sha256:
        return (
            f"was built from another graph (sha256 {sidecar.onnx_sha256[:12]}…, this one has {onnx_sha256[:12]}…)"
        )
    if sidecar.flavour != module:
        return f"was built by {_title(sidecar.flavour)}, {_title(module)} would run it"
    if sidecar.profiles != tuple(OptimizationProfile.from_json(p) for p in options.get("profiles", ())):
        return "was built for other shapes than the plan's optimization profiles"
    return _other_options(sidecar, options.get("build", {}))


def _title(module: str) -> str:
    return MODULES.get(module, f"'{module}'")


def _other_version(sidecar: Sidecar, version: str) -> str | None:
    """A version-compatible engine runs with later versions (NVIDIA, "Version Compatibility").

    Later major ones have removed API that an engine may need: they are not relied upon.
    """
    if sidecar.version == version:
        return None
    built = f"was built by {_title(sidecar.flavour)} {sidecar.version}, here is {version}"
    if not sidecar.options.get("version_compatible"):
        return built
    ours, theirs = _numbers(version), _numbers(sidecar.version)
    if ours[:1] == theirs[:1] and ours >= theirs:
        return None
    return f"{built}: a version-compatible engine runs with later versions of the same major one only"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _other_device(sidecar: Sidecar, gpu: Gpu) -> str | None:
    sms = sidecar.compute_capabilities
    if sidecar.flavour == RTX:
        return None if gpu.sm in sms else f"was built for {_sms(sms)}, '{gpu.name}' has SM {gpu.sm}"
    level = sidecar.options.get("hardware_compatibility")
    if level == "ampere-plus" and not gpu.integrated:
        return None if gpu.sm >= AMPERE else f"was built for Ampere and later, '{gpu.name}' has SM {gpu.sm}"
    if sms != (gpu.sm,):
        return f"was built for {_sms(sms)}, '{gpu.name}' has SM {gpu.sm}"
    if level == "same-compute-capability":
        return None
    name, count = sidecar.device.get("name"), sidecar.device.get("multiprocessors")
    if name is None or count is None:
        return "does not say which GPU it was built on"
    if (name, count) != (gpu.name, gpu.multiprocessors):
        return (
            f"was built on '{name}' with {count} multiprocessors, here is '{gpu.name}' with {gpu.multiprocessors}"
        )
    return None


def _sms(sms: tuple[int, ...]) -> str:
    return f"SM {', '.join(map(str, sms))}" if sms else "a GPU that its sidecar does not name"


def _other_options(sidecar: Sidecar, asked: Mapping[str, Any]) -> str | None:
    """What was asked for must be there; beyond that only how an engine is run must be the usual way."""
    for name, value in sorted(asked.items()):
        if sidecar.options.get(name) != value:
            return f"was built with {name}={sidecar.options.get(name)!r}, the plan asks for {value!r}"
    core = sidecar.options.get("dla_core")
    if core is not None and "dla_core" not in asked:
        return f"was built for DLA core {core}, which the plan does not ask for"
    if sidecar.options.get("strip_weights") and "strip_weights" not in asked:
        return "was built without weights, which the plan does not ask for"
    return None
