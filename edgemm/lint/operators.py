"""Operators that a builder does not know, or not in every version that the target may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgemm.lint import operator_data as data
from edgemm.lint.findings import ERROR, WARNING, Finding
from edgemm.lint.view import Site, View, standard

if TYPE_CHECKING:
    from edgemm.backends.targets import Target

_REWRITE = "rewrite the layer that makes it with other operators, or convert for a target that runs it: cpu, cuda"


def check_operators(view: View, target: Target) -> Iterator[Finding]:
    """Yields ONNX's own operators that no parser, or not this target's builder, takes."""
    rtx = target.builder == "tensorrt-rtx"
    for site in view.sites:
        op = site.node.op_type
        if not standard(site.node):
            continue
        if op in data.NEEDS_PLUGIN_ANYWHERE or (rtx and op in data.NEEDS_PLUGIN):
            reason = "the parser finds no plugin for it: TensorRT-RTX ships none"
        elif rtx and op in data.NO_KERNEL_RTX:
            reason = "the parser takes it and the build fails: TensorRT-RTX has no kernel for it"
        elif op not in data.IMPORTED and op not in data.NEEDS_PLUGIN:
            reason = "TensorRT's parser does not know it"
        else:
            continue
        yield _found(site, "operator", ERROR, reason, _advice(op))


def check_domains(view: View, target: Target) -> Iterator[Finding]:
    """Yields operators of other domains than ONNX's own."""
    for site in view.sites:
        node = site.node
        if standard(node) or (node.domain, node.op_type) in data.SAME_ELSEWHERE:
            continue
        if node.op_type in data.IMPORTED:
            yield _found(
                site,
                "operator-domain",
                WARNING,
                "TensorRT's parser does not look at the domain and takes it for ONNX's own "
                f"{node.op_type}, without a word",
                "use ONNX's own operator if it computes the same, and other operators if it does not",
            )
        else:
            plugin = target.builder != "tensorrt-rtx" and (node.op_type.endswith("_TRT") or "trt" in node.domain)
            yield _found(
                site,
                "operator-domain",
                WARNING if plugin else ERROR,
                f"the parser finds no plugin called '{node.op_type}'"
                + (" unless it is registered on the device" if plugin else ""),
                _advice(node.op_type),
            )


def check_versions(view: View, target: Target) -> Iterator[Finding]:
    """Yields operators that only some of the target's TensorRT versions know, and an opset that is too new."""
    for site in view.sites:
        since = data.SINCE.get(site.node.op_type)
        if since is None or not standard(site.node):
            continue
        old = [v for v in target.tensorrt if data.version_tuple(v) < data.version_tuple(since)]
        if old:
            yield _found(
                site,
                "operator-version",
                ERROR if len(old) == len(target.tensorrt) else WARNING,
                f"TensorRT knows it from {since} on; {releases(target, old)} it has not",
                f"use a JetPack with TensorRT {since} or later, or rewrite it with other operators",
            )
    for site in view.of(*data.BROADCASTS) if 0 < view.opset < data.BROADCAST_OPSET else ():
        yield _found(
            site,
            "opset",
            ERROR,
            f"the model has opset {view.opset}; the parser refuses what broadcasts below {data.BROADCAST_OPSET}",
            "export again, or convert the file with onnx.version_converter",
        )
    old = [v for v in target.tensorrt if data.newest_opset(v) < view.opset]
    if old:
        yield Finding(
            "opset",
            WARNING,
            f"the model has opset {view.opset}; the parser of {releases(target, old)} was written for "
            f"{data.newest_opset(old[-1])} at most and may misread operators whose form has changed since",
            _newer(view.opset, target),
        )


def _newer(opset: int, target: Target) -> str:
    """Returns what to do about an opset that is too new for some of a target's parsers."""
    packs = [j.version for j in target.jetpacks if data.newest_opset(j.tensorrt) >= opset]
    if packs:
        return f"use JetPack {packs[0]} or later"
    newest = max(map(data.newest_opset, target.tensorrt))
    return f"export at opset {newest} or below"


def releases(target: Target, versions: list[str]) -> str:
    """Returns `"TensorRT 8.6 (JetPack 6.0), 10.3 (JetPack 6.1, 6.2)"`."""
    texts = []
    for version in versions:
        packs = ", ".join(j.version for j in target.jetpacks if j.tensorrt == version)
        texts.append(f"{version} (JetPack {packs})")
    return "TensorRT " + ", ".join(texts)


def _advice(op: str) -> str:
    if op.startswith(("QLinear", "DynamicQuantize", "MatMulInteger", "ConvInteger", "MatMulNBits", "QAttention")):
        return "quantize with QuantizeLinear and DequantizeLinear instead (edgemm plans it so for this target)"
    if op.startswith(("Sequence", "ConcatFromSequence", "SplitToSequence")):
        return "export with tensors in place of lists: Split and Concat"
    if op in ("Unique", "Compress", "NonZero", "NonMaxSuppression"):
        return "its output's size depends on the data: do it after the model, or use TopK with a fixed count"
    return _REWRITE


def _found(site: Site, rule: str, severity: str, reason: str, fix: str) -> Finding:
    tensor = next((o.name for o in site.node.outputs if o.name), "")
    return Finding(rule, severity, reason, fix, site.name, site.op, tensor, site.scope)
