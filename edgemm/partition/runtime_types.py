"""Types and ranks that ONNX shape inference cannot know: those of operators outside the ONNX standard."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import onnx_ir as ir

from edgemm._optional import require
from edgemm.errors import MissingExtraError

_log = logging.getLogger(__name__)
_TENSOR = re.compile(r"tensor\((\w+)\)")


def fill_types(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Fills in type and shape of `values` from ONNX Runtime's own inference, where it can load the model.

    Values that stay unknown are left as they are.
    """
    wanted = list(dict.fromkeys(values))
    try:
        runtime = require("onnxruntime", extra="cpu", why="infer the types of custom operators")
    except MissingExtraError:
        return
    probe = model.clone()
    by_name = ir.convenience.create_value_mapping(probe.graph)
    known = {o.name for o in probe.graph.outputs}
    probe.graph.outputs.extend(by_name[v.name] for v in wanted if v.name and v.name not in known)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(
            ir.to_proto(probe).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises its own exception types, all derived from Exception alone
        _log.debug("onnxruntime cannot load the model to infer types: %s", error)
        return
    found = {o.name: o for o in session.get_outputs()}
    for value in wanted:
        _take(value, found[value.name].type, found[value.name].shape)


def _take(value: ir.Value, text: str, shape: list[int | str | None] | None) -> None:
    match = _TENSOR.fullmatch(text)
    if match is None:
        return
    name = {"double": "DOUBLE", "float": "FLOAT"}.get(match[1], match[1].upper())
    value.type = ir.TensorType(ir.DataType[name])
    if shape and value.shape is None:
        value.shape = ir.Shape(shape)
