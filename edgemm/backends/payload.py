"""Every engine that is an ONNX file: the graph as one file, its weights inside; drafts have them beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from edgemm import graph
from edgemm.errors import BackendError

MAX_BYTES = 2**31 - 1
"""Largest ONNX file: protobuf's limit."""


def write_onnx(model: ir.Model, file: Path) -> int:
    """Writes `model` as one ONNX file and returns its size in bytes; weights in other files are taken in.

    Raises:
        BackendError: It would be over 2 GB, or there is no room for it.
    """
    size = _checked_size(model)
    with room_in(file.parent, f"an engine of {size:,} bytes"), file.open("wb") as stream:
        graph.write(model, stream)
    return size


def draft_onnx(model: ir.Model, file: Path) -> int:
    """Writes `model` as an ONNX file with weights beside it and returns the size that it would have as one file.

    Raises:
        BackendError: That would be over 2 GB, or there is no room for it.
    """
    size = _checked_size(model)
    with room_in(file.parent, f"an engine of {size:,} bytes"):
        graph.write_mapped(model, file)
    return size


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


def _checked_size(model: ir.Model) -> int:
    """Returns the size of the file; refuses before anything is written: protobuf would fail late."""
    name = model.graph.name or "model"
    size = sum(
        value.const_value.nbytes
        for part in model.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    )
    if size <= MAX_BYTES:
        size = graph.size(model)
    if size > MAX_BYTES:
        raise _too_large(name, size)
    return size


@contextmanager
def room_in(folder: Path, what: str) -> Iterator[None]:
    """Says what there is no room for when the block cannot write.

    Raises:
        BackendError: The block could not write.
    """
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"{folder}: no room for {what}: {error.strerror or error}.",
            hint="free some space there, or name another folder in the variable TMPDIR",
        ) from error


def _too_large(name: str, size: int) -> BackendError:
    return BackendError(
        f"'{name}' has {size / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB.",
        hint="quantize it, or cut the model into more stages",
    )
