"""Builds ONNX Runtime engines: the graph as one ONNX file, loaded once to prove that it runs."""

from __future__ import annotations

import re

import onnx_ir as ir

from edgemm import graph
from edgemm._optional import require
from edgemm.backends.base import Engine
from edgemm.errors import BackendError, did_you_mean
from edgemm.runtime.ort import open_onnx
from edgemm.runtime.session import SessionOptions

TARGETS = ("cpu",)
"""What this backend builds for."""

MAX_BYTES = 2**31 - 1
"""Largest ONNX file: protobuf's limit."""

_UNSUPPORTED = "rewrite the layer that makes this node with operators that ONNX Runtime has, or update onnxruntime"
_OPERATOR = re.compile(r"(?:([\w.]+):)?(\w+)\(-?\d+\)")


class OnnxRuntimeBackend:
    """The payload is the graph itself; ONNX Runtime optimizes it when the engine opens."""

    name = "onnxruntime"

    def build(self, model: ir.Model, target: str) -> Engine:
        """Returns `model` as an ONNX file that ONNX Runtime has loaded on this machine.

        Weights in external data files are taken into the payload. `model` is not changed.

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
        name = model.graph.name or "model"
        _check_size(model, name)
        payload = graph.serialize(_with_weights(model))
        if len(payload) > MAX_BYTES:
            raise _too_large(name, len(payload))
        try:
            open_onnx(payload, SessionOptions(threads=1), name)
        except BackendError as error:
            raise BackendError(f"{error}{_culprits(model, str(error))}", hint=_UNSUPPORTED) from error
        operators: dict[str, int] = {}
        for node in model.graph.all_nodes():
            operators[node.op_type] = operators.get(node.op_type, 0) + 1
        return Engine(
            self.name,
            payload,
            ".onnx",
            {
                "onnxruntime": ort.__version__,
                "target": target,
                "bytes": len(payload),
                "nodes": sum(operators.values()),
                "operators": dict(sorted(operators.items())),
            },
        )


def _check_size(model: ir.Model, name: str) -> None:
    """Refuses before anything is serialized: protobuf would fail late and without a name."""
    size = sum(
        value.const_value.nbytes
        for part in model.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    )
    if size > MAX_BYTES:
        raise _too_large(name, size)


def _too_large(name: str, size: int) -> BackendError:
    return BackendError(
        f"'{name}' has {size / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB.",
        hint="quantize it, or cut the model into more stages",
    )


def _with_weights(model: ir.Model) -> ir.Model:
    """Returns `model`, or a clone whose external weights are in memory."""
    external = any(
        isinstance(value.const_value, ir.ExternalTensor)
        for part in model.graphs()
        for value in part.initializers.values()
    )
    return ir.external_data.load_to_model(model.clone()) if external else model


def _culprits(model: ir.Model, message: str) -> str:
    """Returns the names of the nodes whose operator `message` mentions, when it names none itself."""
    found = _OPERATOR.search(message)
    if not found:
        return ""
    names = [n.name or f"unnamed {n.op_type}" for n in model.graph.all_nodes() if n.op_type == found.group(2)]
    if not names or any(name in message for name in names):
        return ""
    return f" (nodes: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
