"""The payload of every engine that is an ONNX file: the graph as one file, its weights inside."""

from __future__ import annotations

import re

import onnx_ir as ir

from edgemm import graph
from edgemm.errors import BackendError

MAX_BYTES = 2**31 - 1
"""Largest ONNX file: protobuf's limit."""


def onnx_payload(model: ir.Model) -> bytes:
    """Returns `model` as an ONNX file. Weights in external data files are taken in; `model` is not changed.

    Raises:
        BackendError: It would be over 2 GB.
    """
    name = model.graph.name or "model"
    _check_size(model, name)
    payload = graph.serialize(_with_weights(model))
    if len(payload) > MAX_BYTES:
        raise _too_large(name, len(payload))
    return payload


def count_operators(model: ir.Model) -> dict[str, int]:
    """Returns operator -> number of nodes, sorted by name."""
    operators: dict[str, int] = {}
    for node in model.graph.all_nodes():
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return dict(sorted(operators.items()))


def name_culprits(model: ir.Model, message: str, operators: re.Pattern[str]) -> str:
    """Returns the names of the nodes whose operator `message` mentions, when it names none itself.

    Args:
        model: The graph that was refused.
        message: What the runtime said.
        operators: Finds an operator's type in `message`, as its last group.
    """
    types = {match[match.re.groups] for match in operators.finditer(message)}
    names = [n.name or f"unnamed {n.op_type}" for n in model.graph.all_nodes() if n.op_type in types]
    if not names or any(name in message for name in names):
        return ""
    return f" (nodes: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


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
