"""Opens a TensorRT engine file without a bundle: its sidecar says what it takes, and where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant
from edgemm.errors import BackendError, UnsupportedDeviceError
from edgemm.runtime import cuda
from edgemm.runtime._trt.engines import mismatch
from edgemm.runtime._trt.module import load_module
from edgemm.runtime._trt.sidecar import Sidecar, load_sidecar, sidecar_file
from edgemm.runtime.bare import batch_of
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.trt import TensorRtSession
from edgemm.tensors import IOSpec


def open_engine_file(path: Path, options: SessionOptions) -> tuple[Manifest, TensorRtSession]:
    """Returns a session on an engine file, and what its sidecar says of it as the manifest of one stage.

    Raises:
        BackendError: There is no sidecar, it is damaged, or the engine is not the one that it tells of.
        UnsupportedDeviceError: No GPU, or another GPU or TensorRT than the engine was built for.
        MissingExtraError: The TensorRT module is not installed.
    """
    file = sidecar_file(path)
    if path.is_file() and not file.is_file():
        raise BackendError(
            f"{path}: an engine does not say what it takes; expected its sidecar '{file.name}' beside it, "
            "got none.",
            hint="copy it from where the engine was built (`edgemm build` writes both), or open the .onnx file",
        )
    sidecar = load_sidecar(path)
    _check_device(path, sidecar, options.device)
    session = TensorRtSession(path, options)
    return _describe(path, sidecar, session), session


def _check_device(path: Path, sidecar: Sidecar, device: int) -> None:
    try:
        gpu = cuda.find_gpu(device)
    except UnsupportedDeviceError as error:
        raise UnsupportedDeviceError(
            f"{path}: expected {_built_for(sidecar)}, got no GPU that runs it: {str(error).rstrip('.')}.",
            hint=f"{error.hint}; on a CPU, open the .onnx file that the engine was built from",
        ) from error
    asked: dict[str, Any] = {
        "profiles": [p.to_json() for p in sidecar.profiles],
        "build": dict(sidecar.options),
    }
    reason = mismatch(
        sidecar,
        onnx_sha256=sidecar.onnx_sha256,
        module=sidecar.flavour,
        version=str(load_module(sidecar.flavour).__version__),
        gpu=gpu,
        options=asked,
    )
    if reason is not None:
        raise UnsupportedDeviceError(
            f"{path}: the engine {reason}.", hint="build it for this machine: edgemm build BUNDLE"
        )


def _built_for(sidecar: Sidecar) -> str:
    name = sidecar.device.get("name")
    sms = ", ".join(f"{sm // 10}.{sm % 10}" for sm in sidecar.compute_capabilities)
    return f"'{name}'" if name else f"an NVIDIA GPU of compute capability {sms or 'unknown'}"


def _describe(path: Path, sidecar: Sidecar, session: TensorRtSession) -> Manifest:
    """Returns what a sidecar says, as the manifest of a bundle with one stage and one engine."""
    batch, inputs = batch_of(session.inputs, session.outputs)
    names = tuple(i.name for i in inputs)
    lone = sidecar.modalities[0] if len(sidecar.modalities) == 1 else None
    modalities = {name: lone or name for name in names}
    io = IOSpec(inputs, session.outputs, modalities, batch=batch)
    shown = tuple(dict.fromkeys(modalities.values()))
    role = "encoder" if len(shown) == 1 else "fusion head"
    stage = StageEntry(sidecar.stage or path.stem, shown, role, inputs, session.outputs, 0, 0)
    options = {"module": sidecar.flavour, "profiles": [p.to_json() for p in sidecar.profiles]}
    entry = EngineEntry(
        stage.name,
        (stage.name,),
        path.name,
        names,
        tuple(o.name for o in session.outputs),
        sidecar.precisions,
        "tensorrt",
        options,
    )
    variant = Variant("engine", "tensorrt", "tensorrt", "as built", "whole", (entry,), {}, sidecar.size)
    return Manifest(path.stem, io, (stage,), (), (variant,), info={"dynamic": {"dynamic": _usual(sidecar)}})


def _usual(sidecar: Sidecar) -> list[dict[str, Any]]:
    """Returns the usual sizes of the first profile in the form of a manifest's `info.dynamic`."""
    sizes: dict[str, int] = {}
    for profile in sidecar.profiles[:1]:
        for spec in sidecar.inputs:
            usual = profile.shapes[spec.name].opt if spec.name in profile.shapes else ()
            sizes |= {d: n for d, n in zip(spec.shape, usual, strict=False) if isinstance(d, str)}
    return [{"symbol": symbol, "checked": [size]} for symbol, size in sizes.items()]
