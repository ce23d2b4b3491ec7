"""Builds OpenVINO engines: the same ONNX file as for ONNX Runtime, compiled once to prove that it runs."""

from __future__ import annotations

import re
from pathlib import Path

from edgemm.backends.payload import OnnxFileBackend
from edgemm.runtime.openvino import compile_onnx
from edgemm.runtime.session import SessionOptions


class OpenVinoBackend(OnnxFileBackend):
    """The payload is the graph itself; OpenVINO compiles it when the engine opens."""

    name = "openvino"
    title = "OpenVINO"
    unsupported = "run this model, or this stage of it, on the onnxruntime backend"
    operator = re.compile(r"(?<=[ ,.])([A-Z]\w*)(?=-\d|[,\s]|$)")

    def prove(self, file: Path, name: str) -> str:
        """Compiles an engine once and returns OpenVINO's version.

        Raises:
            BackendError: It does not compile.
            MissingExtraError: openvino is not installed.
        """
        return compile_onnx(file, SessionOptions(threads=1), name)
