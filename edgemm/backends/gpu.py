"""Graphs for a GPU that may not be here: written whole and read back. That they run is shown on the device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from edgemm.backends._trt.onnx_file import read_onnx
from edgemm.backends.payload import OnnxFileBackend
from edgemm.backends.targets import find_target, list_targets
from edgemm.errors import BackendError


class TensorRtBackend(OnnxFileBackend):
    """The payload is the planned graph, Q/DQ and casts in it; `edgemm build` makes an engine of it.

    Attributes:
        kinds: Kinds of target (`Target.kind`) that it is for.
    """

    name = "tensorrt"
    title = "TensorRT"
    unsupported = "see what `edgemm check` finds in this graph"
    operator = re.compile(r"(\w+)")
    kinds: ClassVar[tuple[str, ...]] = ("rtx", "jetson")

    def check_target(self, target: str) -> None:
        """Checks that `target` has such a GPU.

        Raises:
            BackendError: No such target, or it has none.
        """
        if find_target(target).kind not in self.kinds:
            names = [t.name for t in list_targets() if t.kind in self.kinds]
            raise BackendError(
                f"{self.title} engines are not built for '{target}' (targets: {', '.join(names)}).",
                hint="see `edgemm targets`",
            )

    def prove(self, file: Path, name: str) -> str:
        """Reads the graph once and returns its digest: no GPU is asked.

        Raises:
            BackendError: It is no ONNX file.
        """
        return read_onnx(file).sha256


class OrtTensorRtBackend(TensorRtBackend):
    """The same graph for ONNX Runtime's TensorRT provider."""

    name = "ort-tensorrt"
    title = "ONNX Runtime's TensorRT provider:"
    kinds = ("cuda", "jetson")


class OrtRtxBackend(TensorRtBackend):
    """The same graph for ONNX Runtime's TensorRT-RTX provider."""

    name = "ort-rtx"
    title = "ONNX Runtime's TensorRT-RTX provider:"
    kinds = ("rtx",)


class OrtCudaBackend(TensorRtBackend):
    """The same graph for ONNX Runtime's CUDA provider."""

    name = "ort-cuda"
    title = "ONNX Runtime's CUDA provider:"
    kinds = ("cuda", "rtx", "jetson")
