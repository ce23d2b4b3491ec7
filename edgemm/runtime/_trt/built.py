"""Finds the built engines of a variant that may run here, and says of the others why they may not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgemm.bundle import EngineEntry, Manifest, Variant, engine_damage
from edgemm.errors import BackendError, UnsupportedDeviceError
from edgemm.runtime._trt.engines import Gpu, engines_of, mismatch
from edgemm.runtime._trt.module import load_module
from edgemm.runtime._trt.sidecar import load_sidecar


def built_engines(folder: Path, manifest: Manifest, variant: Variant, gpu: Gpu) -> dict[str, str]:
    """Returns engine name -> file of a built engine that may run on `gpu`, for every engine of `variant`.

    Args:
        folder: The bundle, verified.
        manifest: Of the bundle.
        variant: One whose backend is TensorRT.
        gpu: What would run it.

    Raises:
        UnsupportedDeviceError: An engine has not been built, or not for this GPU, TensorRT, graph or plan.
        MissingExtraError: The TensorRT module is not installed.
    """
    found = {}
    for entry in variant.engines:
        module = str(entry.options.get("module", "tensorrt"))
        version = str(load_module(module).__version__)
        reasons = []
        for file in engines_of(manifest.files, entry.file):
            reason = why_not(folder, manifest, entry, file, module, version, gpu)
            if reason is None:
                found[entry.name] = file
                break
            reasons.append(reason)
        else:
            raise UnsupportedDeviceError(_lacking(entry, reasons), hint=f"build it here: edgemm build {folder}")
    return found


def why_not(
    folder: Path, manifest: Manifest, entry: EngineEntry, file: str, module: str, version: str, gpu: Gpu
) -> str | None:
    """Returns why the built engine `file` of `entry` must not be used, or None if it may.

    One that may is byte for byte what the manifest says.
    """
    try:
        sidecar = load_sidecar(folder / file)
        reason = mismatch(
            sidecar,
            onnx_sha256=str(manifest.files[entry.file]["sha256"]),
            module=module,
            version=version,
            gpu=gpu,
            options=entry.options,
        )
    except BackendError as error:
        return engine_damage(folder, manifest, file) or str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return engine_damage(folder, manifest, file) or f"has a sidecar that makes no sense ({error})"
    if reason is None and sidecar.sha256 != manifest.files[file]["sha256"]:
        reason = "is not the one that its sidecar tells of"
    return reason or engine_damage(folder, manifest, file)


def _lacking(entry: EngineEntry, reasons: Iterable[str]) -> str:
    told = "; ".join(dict.fromkeys(reasons))
    if not told:
        return f"'{entry.name}' has no built engine in this bundle."
    return f"'{entry.name}' has no engine for this machine: the one in the bundle {told}."
