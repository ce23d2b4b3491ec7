"""Calls of local functions become their bodies: y = f(x), f(x) = g(h(x)) -> y = g(h(x))."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.partition import prepare
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Inlines every local function; returns how many functions there were."""
    return prepare.inline_functions(model)
