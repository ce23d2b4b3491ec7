"""Why tests with the real TensorRT-RTX cannot run here: `pip install 'edgemm[rtx]'`, or `make test-rtx`."""

from __future__ import annotations

from edgemm.errors import EdgemmError
from edgemm.runtime._trt.module import load_module


def reason_to_skip() -> str:
    """Returns why TensorRT-RTX cannot be used here, empty when it can."""
    try:
        load_module("tensorrt_rtx")
    except EdgemmError as error:
        return str(error)
    return ""


SKIP = reason_to_skip()
