"""What TensorRT says, made readable: wrappers and noise go, the node stays, a hint is found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from edgemm.backends._trt.onnx_file import OnnxFile
from edgemm.backends._trt.request import BuildRequest
from edgemm.errors import BackendError
from edgemm.runtime._trt.module import DTYPES

MAX_LENGTH = 500
"""Characters of a message that are passed on."""

ELSEWHERE = "without an engine a session runs the graph on ONNX Runtime"
"""What else there is for a graph that TensorRT does not build."""

_NOISE = ("cudaError 35", "CUDA driver version is insufficient")
"""A machine without a driver says so at every step; TensorRT-RTX builds all the same."""

_IDLE = ("Converting conv activation scales to fp32",)
"""Warnings about what TensorRT does inside, which nobody who gave a graph can change."""

_WRAPPERS = (
    re.compile(r"^\s*(?:\[[^\]]*\]\s*)?(?:I\w+::\w+:\s*)?Error Code \d+:?\s*[\w ]*?(?=\(|:)\s*:?\s*"),
    re.compile(r"\s+In \w+ at \S+:\d+"),
    re.compile(r"\[[\w./]+:\d+: \w+\]\s*"),
    re.compile(r"\[[\w./]+::\w+::\d+\]\s*"),
    re.compile(r"\bI\w+::\w+: Error Code \d+: [\w ]+(?=\()"),
    re.compile(r"\bMyelinCheckException: [\w./]+:\d+: "),
    re.compile(r"^Assertion failed: .*?: (?=[A-Z])"),
    re.compile(r'^Assertion failed: .*? && (?=")'),
    re.compile(r"^Invalid Node - \S+\s*"),
)

_HINTS = (
    (
        r"shiftIsAllZeros|Non-zero zero point",
        "TensorRT takes symmetric int8 only: quantize with zero-point 0, for this target",
    ),
    (
        r"Int32 but must have type|input has type (?:Int32|UInt32)",
        "leave the bias float: TensorRT quantizes data and weights only",
    ),
    (
        r"Scale coefficients must all be positive",
        "a scale is 0 or negative: calibrate with data that is not constant",
    ),
    (
        r"[Pp]lugin.* not found|Plugin not found|no importer|IPluginCreator",
        f"rewrite the layer with standard operators; {ELSEWHERE}",
    ),
    (
        r"same input types|must have the same type|is of type (?:Half|Float|BFloat16)",
        "the graph mixes precisions: put a Cast in front of the node",
    ),
    (
        r"convertDtype|Failed to convert ONNX",
        "TensorRT takes numbers and booleans only: leave strings outside of the model",
    ),
    (r"HW-specific datatypes", "a GPU among the targets lacks this precision: leave it out, or use fp16 or int8"),
    (r"FP32 GEMM is not supported", "Turing has no float32 products in TensorRT-RTX: make this stage fp16"),
    (r"K exceeds the maximum", "take fewer: TensorRT's TopK has a limit for k"),
    (r"no runners that implement", f"this TensorRT lacks the operator; {ELSEWHERE}"),
    (
        r"no tactics|workspace|insufficient memory",
        "allow more scratch memory: leave --max-memory out, or raise it",
    ),
    (
        r"cannot be negative|output dimension",
        "the smallest sizes of a profile are too small for this node: raise their minimum",
    ),
    (r"decompos", "cast the attention to fp16, or write it with MatMul and Softmax"),
    (r"libnvinfer_lean", "leave version compatibility out: the lean runtime is not installed"),
    (r"no optimization profile|dynamic or shape inputs", "give a range for every dynamic size"),
    (r"is not supported on DLA|can_run_on_DLA|DLA", "allow GPU fallback for this stage, or build it for the GPU"),
    (
        r"[Oo]ut ?[Oo]f ?[Mm]emory|bad_alloc|cudaErrorMemoryAllocation",
        "free memory on the device, or lower --max-memory",
    ),
    (r"local_function|UNSUPPORTED_NODE", "rewrite the layer with operators that TensorRT has"),
)


def clean(text: str) -> str:
    """Returns a message without source files, error codes and lines about a missing driver; none may be left."""
    lines = [line for line in text.splitlines() if line.strip() and not any(n in line for n in _NOISE)]
    cleaned = []
    for line in lines:
        for pattern in _WRAPPERS:
            line = pattern.sub("", line)
        cleaned.append(_unwrap(line.strip()))
    return " ".join(" ".join(cleaned).split())[:MAX_LENGTH].strip('" .')


def _unwrap(line: str) -> str:
    """Takes the brackets off `(message)`."""
    while line.startswith("(") and line.endswith(")"):
        line = line[1:-1].strip()
    return line


def errors_of(messages: Iterable[tuple[str, str]]) -> list[str]:
    """Returns the cleaned errors of a log, without repetitions."""
    found = (clean(text) for severity, text in messages if severity in ("ERROR", "INTERNAL_ERROR"))
    return list(dict.fromkeys(text for text in found if text))


def warnings_of(messages: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Returns the cleaned warnings of a log that somebody can act on, without repetitions."""
    found = (clean(text) for severity, text in messages if severity == "WARNING")
    return tuple(dict.fromkeys(text for text in found if text and not any(idle in text for idle in _IDLE)))


def hint_for(message: str, otherwise: str) -> str:
    """Returns what to do about `message`."""
    return next((hint for pattern, hint in _HINTS if re.search(pattern, message)), otherwise)


def parser_failure(
    parser: Any, log: Iterable[tuple[str, str]], onnx: OnnxFile, request: BuildRequest, who: str
) -> BackendError:
    """Returns what a parser that said no says, with the ONNX node of every error."""
    found = [_parser_error(parser.get_error(i), onnx) for i in range(parser.num_errors)]
    if not found:
        logged = errors_of(log)
        text = logged[0] if logged else "it gave no reason"
        return request.fail(
            f"{who} cannot read the graph: {text}.", hint_for(text, "check the graph: edgemm check, onnx.checker")
        )
    (where, text), *more = found
    if not where:
        where = _refused_input(onnx)
    also = f" ({len(more)} more: {'; '.join(f'{w}: {t}' for w, t in more[:3])})" if more else ""
    what = f"{where}: {text}" if where else text
    return request.fail(
        f"{who} cannot read the graph: {what}{also}.",
        hint_for(text, f"rewrite this part with operators that TensorRT has; {ELSEWHERE}"),
    )


def _parser_error(error: Any, onnx: OnnxFile) -> tuple[str, str]:
    """Returns the node that an error is about, empty when none is, and what it says."""
    name, operator = _call(error, "node_name"), _call(error, "node_operator")
    where = f"node '{name}' ({operator})" if name else ""
    index = int(error.node())
    if not where and 0 <= index < len(onnx.nodes) and operator in ("", onnx.nodes[index].op):
        node = onnx.nodes[index]
        where, operator = str(node), node.op
    elif not where and operator:
        where = f"a {operator} node"  # inside a subgraph: the index is not one of the graph
    stack = [str(call) for call in getattr(error, "local_function_stack", list)()]
    if stack:
        where = f"{where} in function {' in '.join(stack)}"
    code, text = getattr(error.code(), "name", str(error.code())), clean(str(error.desc()))
    if code.startswith("UNSUPPORTED_NODE") and text in ("", "false"):
        text = f"operator {operator} is not supported ({code})"
    text = text.removeprefix(f"{name}: ") if name else text
    return where, text or f"it gave no reason ({code})"


def _refused_input(onnx: OnnxFile) -> str:
    """Returns the inputs that no TensorRT takes: the parser does not name them."""
    refused = [
        f"input '{i.name}' ({i.dtype})" for i in onnx.inputs if i.dtype not in {*DTYPES.values(), "float64"}
    ]
    return ", ".join(refused)


def _call(error: Any, name: str) -> str:
    method: Callable[[], Any] | None = getattr(error, name, None)
    return str(method()) if method is not None else ""


def builder_failure(
    log: Iterable[tuple[str, str]], onnx: OnnxFile, request: BuildRequest, who: str
) -> BackendError:
    """Returns why a build gave nothing: the first error of the log, with the ONNX node whose name is in it."""
    errors = errors_of(log)
    text = errors[0] if errors else "it gave no reason"
    node = _mentioned(text, onnx)
    where = f"{node}: " if node else ""
    hint = hint_for(text, f"try a lower optimization level; {ELSEWHERE}")
    if "CUDA_SUCCESS" in text and (request.options.refit or request.options.strip_weights):
        hint = "refit needs a GPU to build on: leave it out here, or build on the device"
    return request.fail(f"{who} cannot build the engine: {where}{text}.", hint)


def _mentioned(text: str, onnx: OnnxFile) -> str:
    """Returns the first node whose name is in `text`; layers may have `_0` behind the name of their node."""
    found: list[tuple[int, int, str]] = []
    for node in onnx.nodes:
        name = node.name or f"node_of_{node.outputs[0] if node.outputs else ''}"
        match = re.search(rf"(?<![\w/.]){re.escape(name)}(?:_\d+)?(?![\w/])", text)
        if match:
            found.append((match.start(), -len(name), str(node)))
    return min(found)[2] if found else ""
