"""A backend builds engines; its twin in `edgemm.runtime` runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Engine:
    """A built payload for one backend.

    Attributes:
        backend: Registry name, the same in `edgemm.backends.registry` and `edgemm.runtime.registry`.
        payload: What goes into the bundle, byte for byte.
        suffix: File suffix of the payload, for example `".onnx"`.
        build_report: What the builder said: precisions, sizes, options.
    """

    backend: str
    payload: bytes
    suffix: str
    build_report: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Builds the engine of one stage for one target."""

    name: str

    def build(self, model: ir.Model, target: str) -> Engine:
        """Returns the engine for `model` on `target`.

        Raises:
            BackendError: The target cannot run this graph; the message names the node.
        """
        ...
