"""The rules, and the checks: functions (view, target) -> findings, each of one rule or several."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemm.backends.targets import Target
    from edgemm.lint.findings import Finding
    from edgemm.lint.view import View

RULES = {
    "zero-point": "a zero point that is not 0, or is computed",
    "quantized-type": "Q/DQ to a type that TensorRT has not",
    "scale": "a scale that is not above 0, or is computed",
    "weight-axis": "a weight with scales along another axis than its output channels",
    "activation-scale": "an activation with several scales",
    "operator": "an operator that the builder does not know, or has no kernel or plugin for",
    "operator-domain": "an operator of another domain than ONNX's own",
    "operator-version": "an operator that not every TensorRT of the target knows",
    "opset": "an opset that is newer than the parser, or too old for it",
    "operator-form": "an operator in a form that the parser refuses",
    "shape-input": "an input whose values decide a shape",
    "topk-limit": "a TopK that gives more than TensorRT can",
    "loop-condition": "a Loop without a condition whose body reads it",
    "attention-kernel": "an Attention that no kernel computes",
    "tensor-type": "an input, weight or cast of a type that TensorRT has not",
    "double": "double, which is computed in float",
    "precision": "a number format that the target has not",
    "float-product": "a float32 matrix product or 3D deconvolution where only fp16 ones exist",
    "mixed-types": "inputs of one node that must have one type and have two",
    "profile-missing": "a dynamic input without a range, or a range without an input",
    "profile-range": "a range that is none, or does not fit the input",
    "profile-symbol": "one symbol with two ranges",
    "not-worth-int8": "int8 that is right and gains nothing",
}
"""Rule -> what it finds."""

CHECKS = (
    "edgemm.lint.quantization:check_zero_points",
    "edgemm.lint.quantization:check_types",
    "edgemm.lint.quantization:check_scales",
    "edgemm.lint.quantization:check_weight_axes",
    "edgemm.lint.quantization:check_activation_scales",
    "edgemm.lint.operators:check_operators",
    "edgemm.lint.operators:check_domains",
    "edgemm.lint.operators:check_versions",
    "edgemm.lint.forms:check_forms",
    "edgemm.lint.forms:check_shape_inputs",
    "edgemm.lint.forms:check_topk",
    "edgemm.lint.forms:check_loops",
    "edgemm.lint.forms:check_attention_kernels",
    "edgemm.lint.dtypes:check_tensor_types",
    "edgemm.lint.dtypes:check_doubles",
    "edgemm.lint.dtypes:check_precisions",
    "edgemm.lint.dtypes:check_float_products",
    "edgemm.lint.dtypes:check_mixed_types",
    "edgemm.lint.worth:check_worth",
)
"""What is done for a target with TensorRT, in order; profiles are checked besides."""


def run_checks(view: View, target: Target) -> Iterator[Finding]:
    """Yields what every check finds."""
    for check in CHECKS:
        module, _, name = check.partition(":")
        yield from getattr(importlib.import_module(module), name)(view, target)
