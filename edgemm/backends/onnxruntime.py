"""Builds ONNX Runtime engines: the graph as one ONNX file, loaded once to prove that it runs."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from edgemm._optional import require
from edgemm.backends.base import Engine
from edgemm.backends.payload import count_operators, draft_onnx, name_culprits, write_onnx
from edgemm.errors import BackendError, did_you_mean
from edgemm.runtime.ort import open_onnx
from edgemm.runtime.session import SessionOptions

TARGETS = ("cpu",)
"""What this backend builds for."""

_UNSUPPORTED = "rewrite the layer that makes this node with operators that ONNX Runtime has, or update onnxruntime"
_OPERATOR = re.compile(r"(?:([\w.]+):)?(\w+)\(-?\d+\)")


class OnnxRuntimeBackend:
    """The payload is the graph itself; ONNX Runtime optimizes it when the engine opens."""

    name = "onnxruntime"
    suffix = ".onnx"

    def build(self, model: ir.Model, target: str, file: Path) -> Engine:
        """Returns `model` as an ONNX file that ONNX Runtime has loaded on this machine.

        Weights in external data files are taken into the file. `model` is not changed.

        Raises:
            BackendError: Unknown target, over 2 GB, or an operator that ONNX Runtime cannot run (named with its
                node).
            MissingExtraError: onnxruntime is not installed.
        """
        if target not in TARGETS:
            raise BackendError(
                f"ONNX Runtime engines are not built for '{target}' (targets: {', '.join(TARGETS)}).",
                hint=did_you_mean(target, TARGETS, "use --target cpu"),
            )
        ort = require("onnxruntime", extra="cpu", why="check that the engine runs")
        size = write_onnx(model, file)
        try:
            open_onnx(file, SessionOptions(threads=1), model.graph.name or "model")
        except BackendError as error:
            culprits = name_culprits(model, str(error), _OPERATOR)
            raise BackendError(f"{error}{culprits}", hint=_UNSUPPORTED) from error
        operators = count_operators(model)
        return Engine(
            self.name,
            file,
            {
                "onnxruntime": ort.__version__,
                "target": target,
                "bytes": size,
                "nodes": sum(operators.values()),
                "operators": operators,
            },
        )

    def draft(self, model: ir.Model, file: Path) -> int:
        """Writes `model` as an ONNX file whose large weights lie beside it, and returns the size of the whole.

        Raises:
            BackendError: Over 2 GB.
        """
        return draft_onnx(model, file)
