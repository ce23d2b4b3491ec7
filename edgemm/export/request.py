"""What the user asks of an export, and what it answers. `torch_onnx` is where they are used and imported from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgemm.compare import ParityReport
from edgemm.graph import ExportedGraph
from edgemm.tensors import StateSpec, TensorSpec

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What the user says about a model.

    Attributes:
        inputs: Declared inputs (`--input`); they win over data, and add open sizes to what the file says.
        modalities: Input -> modality (`--modality`).
        states: Inputs that come back as outputs (`--state`).
        opset: ONNX operator set; None takes torch.onnx's own.
        absolute_tolerance: Largest absolute difference between the graph and the model that passes.
        relative_tolerance: Added to it: this part of the largest absolute value of the output.
    """

    inputs: tuple[TensorSpec, ...] = ()
    modalities: Mapping[str, str] = field(default_factory=dict)
    states: tuple[StateSpec, ...] = ()
    opset: int | None = None
    absolute_tolerance: float = 1e-4
    relative_tolerance: float = 1e-3


@dataclass(frozen=True, slots=True)
class DynamicDim:
    """An open dimension of an input, with the sizes at which the graph was run and compared."""

    tensor: str
    axis: int
    symbol: str
    checked: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FixedDim:
    """A dimension that might have been open and is not, with the reason."""

    tensor: str
    axis: int
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class DynamicReport:
    """Which dimensions of the inputs may change from call to call, and which ended fixed and why."""

    dynamic: tuple[DynamicDim, ...]
    fixed: tuple[FixedDim, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns `{dynamic: [{tensor, axis, symbol, checked}], fixed: [{tensor, axis, size, reason}]}`."""
        return {
            "dynamic": [
                {"tensor": d.tensor, "axis": d.axis, "symbol": d.symbol, "checked": list(d.checked)}
                for d in self.dynamic
            ],
            "fixed": [
                {"tensor": f.tensor, "axis": f.axis, "size": f.size, "reason": f.reason} for f in self.fixed
            ],
        }


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An exported graph with the evidence for it."""

    graph: ExportedGraph
    dynamic: DynamicReport
    parity: ParityReport
    notes: tuple[str, ...]
