"""Every engine that is an ONNX file: the graph as one file, its weights inside; drafts have them beside it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from edgemm import graph
from edgemm.backends.base import Engine
from edgemm.errors import BackendError, did_you_mean

MAX_BYTES = 2**31 - 1
"""Largest ONNX file: protobuf's limit."""


TARGETS = ("cpu",)
"""What engines that are ONNX files are built for."""


class OnnxFileBackend(ABC):
    """A backend whose engines are ONNX files; a subclass says what loads them.

    Attributes:
        name: Registry name.
        suffix: Of engine files.
        title: What people call the runtime.
        unsupported: Hint for a graph that it refuses.
        operator: Finds an operator's type in what it says, as its last group.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ".onnx"
    title: ClassVar[str]
    unsupported: ClassVar[str]
    operator: ClassVar[re.Pattern[str]]

    @abstractmethod
    def prove(self, file: Path, name: str) -> str:
        """Loads the engine `file` of the graph `name` once and returns the runtime's version."""

    def build(self, model: ir.Model, target: str, file: Path) -> Engine:
        """Returns `model` as an ONNX file that was loaded on this machine.

        Weights in external data files are taken into the file. `model` is not changed.

        Raises:
            BackendError: Unknown target, over 2 GB, no room, or an operator that the runtime lacks (named with its
                node).
            MissingExtraError: The runtime is not installed.
        """
        self.check_target(target)
        size = _checked_size(model)
        with graph.room_in(file.parent, f"an engine of {size:,} bytes"), file.open("wb") as stream:
            graph.write(model, stream)
        try:
            version = self.prove(file, model.graph.name or "model")
        except BackendError as error:
            raise BackendError(f"{error}{self._culprits(model, str(error))}", hint=self.unsupported) from error
        operators = Counter(node.op_type for node in model.graph.all_nodes())
        return Engine(
            self.name,
            file,
            {
                self.name: version,
                "target": target,
                "bytes": size,
                "nodes": operators.total(),
                "operators": dict(sorted(operators.items())),
            },
        )

    def check_target(self, target: str) -> None:
        """Checks that engines of this backend are for `target`.

        Raises:
            BackendError: They are not; the message names the targets.
        """
        if target not in TARGETS:
            raise BackendError(
                f"{self.title} engines are not built for '{target}' (targets: {', '.join(TARGETS)}).",
                hint=did_you_mean(target, TARGETS, "use --target cpu"),
            )

    def draft(self, model: ir.Model, file: Path) -> int:
        """Writes `model` as an ONNX file whose large weights lie beside it, and returns the size of the whole.

        Raises:
            BackendError: That would be over 2 GB, or there is no room for it.
        """
        size = _checked_size(model)
        with graph.room_in(file.parent, f"an engine of {size:,} bytes"):
            graph.write_mapped(model, file)
        return size

    def _culprits(self, model: ir.Model, message: str) -> str:
        """Returns the names of the nodes whose operator `message` mentions, when it names none itself."""
        types = {match[self.operator.groups] for match in self.operator.finditer(message)}
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


def _too_large(name: str, size: int) -> BackendError:
    return BackendError(
        f"'{name}' has {size / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB.",
        hint="quantize it, or cut the model into more stages",
    )
