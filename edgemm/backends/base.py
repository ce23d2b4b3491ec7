"""A backend builds engines; its twin in `edgemm.runtime` runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Engine:
    """What was built for one backend.

    Attributes:
        backend: Registry name, the same in `edgemm.backends.registry` and `edgemm.runtime.registry`.
        file: What goes into the bundle.
        build_report: What the builder said: precisions, sizes, options.
    """

    backend: str
    file: Path
    build_report: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Builds the engine of one stage for one target.

    Attributes:
        name: Registry name.
        suffix: Of engine files, for example `".onnx"`.
    """

    name: str
    suffix: str

    def build(self, model: ir.Model, target: str, file: Path) -> Engine:
        """Returns the engine for `model` on `target`, written to `file` and loaded once to prove that it runs.

        Raises:
            BackendError: The target cannot run this graph; the message names the node.
        """
        ...

    def draft(self, model: ir.Model, file: Path) -> int:
        """Writes an engine that this machine alone opens, to be tried: large weights may lie in files beside it.

        Returns the size of the engine that `build` would write, in bytes.

        Raises:
            BackendError: It cannot be written as an engine.
        """
        ...
