"""The signature and the origin that go with an exported graph."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgemm.export.model import LoadedModel
from edgemm.export.request import ExportRequest
from edgemm.export.signature import group_modalities
from edgemm.tensors import Dim, IOSpec, StateSpec, TensorSpec


def describe(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    request: ExportRequest,
    states: Sequence[StateSpec],
    batch: Dim | None,
) -> IOSpec:
    """Returns the IOSpec of a graph, its inputs grouped into modalities.

    Raises:
        RecipeError: A declared modality names no input.
    """
    modalities, reasons = group_modalities(inputs, request.modalities, states)
    return IOSpec(tuple(inputs), tuple(outputs), modalities, tuple(states), batch, reasons)


def provenance(loaded: LoadedModel, model: ir.Model) -> dict[str, Any]:
    """Returns where a graph came from: file name, kind, sha256, weights, opset, versions of the exporters."""
    found: dict[str, Any] = {
        "source": loaded.path.name,
        "kind": loaded.kind,
        "sha256": loaded.sha256,
        "parameters": loaded.parameters,
        "opset": model.opset_imports.get(""),
    }
    packages = ("onnx",) if loaded.kind == "onnx" else ("torch", "onnxscript")
    return found | {package: importlib.metadata.version(package) for package in packages}
