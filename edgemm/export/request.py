"""What the user asks of an export, and what it answers. `torch_onnx` is where they are used and imported from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgemm.compare import ParityReport
from edgemm.graph import ExportedGraph
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

Progress = Callable[[str], None]

_SINGLE = "the only size that the file and the data show; --input NAME=SHAPE:DTYPE opens it"


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
    """Which dimensions of the inputs may change from call to call, and which ended fixed and why.

    Attributes:
        dynamic: Open dimensions.
        fixed: Dimensions that might have been open and are not.
        single: Dimensions of which file and data show one size only; nobody asked for them to be open.
    """

    dynamic: tuple[DynamicDim, ...]
    fixed: tuple[FixedDim, ...]
    single: tuple[FixedDim, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Gives `{dynamic: [{tensor, axis, symbol, checked}], fixed: [{tensor, axis, size, reason}], single}`."""

        def plain(dims: tuple[FixedDim, ...]) -> list[dict[str, Any]]:
            return [{"tensor": f.tensor, "axis": f.axis, "size": f.size, "reason": f.reason} for f in dims]

        return {
            "dynamic": [
                {"tensor": d.tensor, "axis": d.axis, "symbol": d.symbol, "checked": list(d.checked)}
                for d in self.dynamic
            ],
            "fixed": plain(self.fixed),
            "single": plain(self.single),
        }


def with_single_sizes(report: DynamicReport, io: IOSpec) -> DynamicReport:
    """Returns `report` with every other number in the inputs' shapes as `single`."""
    known = {(d.tensor, d.axis) for d in report.dynamic} | {(f.tensor, f.axis) for f in report.fixed}
    single = tuple(
        FixedDim(spec.name, axis, size, _SINGLE)
        for spec in io.feed_inputs
        for axis, size in enumerate(spec.shape)
        if isinstance(size, int) and (spec.name, axis) not in known
    )
    return DynamicReport(report.dynamic, report.fixed, single)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An exported graph with the evidence for it."""

    graph: ExportedGraph
    dynamic: DynamicReport
    parity: ParityReport
    notes: tuple[str, ...]
