"""Builds engines that compute nothing, so that a whole conversion can be tried without a runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from edgemm.backends.base import Engine
from edgemm.errors import BackendError


class NullBackend:
    """Writes down the graph's signature; `edgemm.runtime.null` answers with zeros of it."""

    name = "null"
    suffix = ".json"

    def build(self, model: ir.Model, target: str, file: Path) -> Engine:
        """Returns the signature of `model` as an engine; any `target` will do.

        Raises:
            BackendError: An input or output has no dtype or no rank.
        """
        return Engine("null", file, {"target": target, "bytes": self.draft(model, file)})

    def draft(self, model: ir.Model, file: Path) -> int:
        """Writes the signature of `model` and returns its size.

        Raises:
            BackendError: An input or output has no dtype or no rank.
        """
        signature = {"inputs": _specs(model.graph.inputs), "outputs": _specs(model.graph.outputs)}
        return file.write_bytes(json.dumps(signature, indent=1).encode() + b"\n")


def _specs(values: Iterable[ir.Value]) -> list[tuple[str | None, str, list[int | str]]]:
    specs = []
    for value in values:
        if value.dtype is None or value.shape is None:
            raise BackendError(
                f"'{value.name}' has no dtype or shape.", hint="run shape inference over the graph first"
            )
        shape = [d if isinstance(d, int) else d.value or f"{value.name}:{i}" for i, d in enumerate(value.shape)]
        specs.append((value.name, value.dtype.numpy().name, shape))
    return specs
