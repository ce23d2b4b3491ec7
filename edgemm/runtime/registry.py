"""Backend name -> session class, loaded when a session opens."""

from __future__ import annotations

import importlib
from typing import cast

from edgemm.errors import BackendError, did_you_mean
from edgemm.runtime.session import EngineSession

SESSIONS = {
    "onnxruntime": "edgemm.runtime.ort:OrtSession",
    "openvino": "edgemm.runtime.openvino:OpenVinoSession",
    "tensorrt": "edgemm.runtime.trt:TensorRtSession",
    "ort-tensorrt": "edgemm.runtime.providers:OrtTensorRtSession",
    "ort-rtx": "edgemm.runtime.providers:OrtRtxSession",
    "ort-cuda": "edgemm.runtime.providers:OrtCudaSession",
    "null": "edgemm.runtime.null:NullSession",
}


def session_class(backend: str) -> type[EngineSession]:
    """Returns the session class of `backend`.

    Raises:
        BackendError: No such backend.
        MissingExtraError: Its package is not installed.
    """
    if backend not in SESSIONS:
        raise BackendError(
            f"no backend '{backend}' in this version (backends: {', '.join(SESSIONS)}).",
            hint=did_you_mean(backend, SESSIONS, "update edgemm on this device"),
        )
    module, _, name = SESSIONS[backend].partition(":")
    return cast("type[EngineSession]", getattr(importlib.import_module(module), name))
