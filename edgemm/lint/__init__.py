"""Finds what an NVIDIA builder will refuse or misread, before it is called and without TensorRT installed.

    ONNX graph ─open_view▶ View ─checks in registry▶ findings          (rule, severity, node, reason, fix)

TensorRT stops at the first error, reports some of them when the build is under way, many without the node's name,
and takes others without a word. `quantization`, `operators`, `forms`, `dtypes`, `profiles` and `worth` are the
families of rules; `bundle` runs them over every engine of a bundle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgemm.lint.findings import ERROR, NOTE, SEVERITIES, WARNING, Finding

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgemm.backends.targets import Target
    from edgemm.lint.profiles import Profiles

__all__ = ["ERROR", "NOTE", "SEVERITIES", "WARNING", "Finding", "lint"]


def lint(model: ir.Model, target: Target, profiles: Profiles | None = None) -> tuple[Finding, ...]:
    """Returns everything that would keep `model` from an engine for `target`, or from the engine that is meant.

    Nodes in bodies of If, Loop and Scan and in local functions are checked as well. A target for which no TensorRT
    reads the graph (`cpu`, `cuda`) has no findings. The model stays as it is.

    Args:
        model: An ONNX graph, float or with Q/DQ.
        target: What the engine is for (`edgemm.backends.targets.find_target`).
        profiles: Optimization profiles, each input -> `ShapeRange`; None where they are not decided yet, and then
            nothing is said about shapes.

    Returns:
        The findings, errors first, in the order of the graph within a severity.
    """
    if target.builder is None:
        return ()
    from edgemm.lint.profiles import check_profiles, inputs_of
    from edgemm.lint.registry import run_checks
    from edgemm.lint.view import open_view

    view = open_view(model)
    found = list(run_checks(view, target))
    if target.builder == "ort-tensorrt":
        found = [_fall_back(f) for f in found]
    if profiles is not None:
        found += check_profiles(inputs_of(view), profiles)
    order = {site.name: index for index, site in enumerate(view.sites)}
    return tuple(sorted(dict.fromkeys(found), key=lambda f: (SEVERITIES.index(f.severity), order.get(f.node, -1))))


def _fall_back(finding: Finding) -> Finding:
    """Returns an error as the warning that it is where ONNX Runtime runs elsewhere what TensorRT refuses."""
    if finding.severity != ERROR or finding.rule == "quantized-type":
        return finding  # quantized-type may be taken without a word, and nothing falls back then
    reason = f"{finding.reason}; ONNX Runtime then runs it outside of TensorRT"
    return replace(finding, severity=WARNING, reason=reason)
