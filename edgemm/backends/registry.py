"""Backend name -> builder, loaded when it is asked for. The same names as in `edgemm.runtime.registry`."""

from __future__ import annotations

import importlib
from typing import cast

from edgemm.backends.base import Backend
from edgemm.errors import BackendError, did_you_mean

BACKENDS = {
    "onnxruntime": "edgemm.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "edgemm.backends.openvino:OpenVinoBackend",
    "tensorrt": "edgemm.backends.gpu:TensorRtBackend",
    "ort-tensorrt": "edgemm.backends.gpu:OrtTensorRtBackend",
    "ort-rtx": "edgemm.backends.gpu:OrtRtxBackend",
    "ort-cuda": "edgemm.backends.gpu:OrtCudaBackend",
    "null": "edgemm.backends.null:NullBackend",
}


def get_backend(name: str) -> Backend:
    """Returns the builder called `name`.

    Raises:
        BackendError: No such backend; the hint names the closest one.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"no backend '{name}' in this version (backends: {', '.join(BACKENDS)}).",
            hint=did_you_mean(name, BACKENDS, "use one of these"),
        )
    module, _, attribute = BACKENDS[name].partition(":")
    return cast("Backend", getattr(importlib.import_module(module), attribute)())
