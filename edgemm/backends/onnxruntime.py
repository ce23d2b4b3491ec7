"""Builds ONNX Runtime engines: the graph as one ONNX file, loaded once to prove that it runs."""

from __future__ import annotations

import re
from pathlib import Path

from edgemm._optional import require
from edgemm.backends.payload import OnnxFileBackend
from edgemm.runtime.ort import open_onnx
from edgemm.runtime.session import SessionOptions


class OnnxRuntimeBackend(OnnxFileBackend):
    """The payload is the graph itself; ONNX Runtime optimizes it when the engine opens."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    unsupported = (
        "rewrite the layer that makes this node with operators that ONNX Runtime has, or update onnxruntime"
    )
    operator = re.compile(r"(?:([\w.]+):)?(\w+)\(-?\d+\)")

    def prove(self, file: Path, name: str) -> str:
        """Loads an engine once and returns ONNX Runtime's version.

        Raises:
            BackendError: It does not load.
            MissingExtraError: onnxruntime is not installed.
        """
        ort = require("onnxruntime", extra="cpu", why="check that the engine runs")
        open_onnx(file, SessionOptions(threads=1), name)
        return str(ort.__version__)
