"""Forms of operators that the parser or the builder refuses: an attribute, an output, an input that is computed.

Each was found by building ONNX's own node tests with TensorRT-RTX 1.7.1; the parser is onnx-tensorrt, which every
TensorRT shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgemm.lint.findings import ERROR, NOTE, WARNING, Finding
from edgemm.lint.operator_data import version_tuple
from edgemm.lint.operators import releases
from edgemm.lint.view import Site, View, attribute, constant, dims, dtype, input_of, is_constant, standard

if TYPE_CHECKING:
    from edgemm.backends.targets import Target

TOPK_LIMIT = 3840
"""Most elements that TopK gives (ITopKLayer)."""

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def _resize(node: ir.Node) -> Iterator[tuple[str, str]]:
    if attribute(node, "antialias", 0):
        yield "antialiasing is not supported", "set antialias to 0 and blur before, or resize before the model"
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        yield f"keep_aspect_ratio_policy '{policy}' is not supported", "compute the size beforehand"
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
        yield f"the mode '{mode}' is not supported", "use half_pixel (and crop with Slice)"
    axes, rank = attribute(node, "axes", None), len(dims(input_of(node, 0)) or ())
    if axes is not None and input_of(node, 2) is not None and list(axes) != list(range(rank)):
        yield "axes with scales are not supported", "give scales for all axes, 1 where nothing changes, or sizes"


def _scatter(node: ir.Node) -> Iterator[tuple[str, str]]:
    reduction = attribute(node, "reduction", "none")
    if reduction != "none":
        yield (
            f"the reduction '{reduction}' is not supported",
            "scatter into zeros and add, or use a matrix product",
        )


def _pool(node: ir.Node) -> Iterator[tuple[str, str]]:
    if any(d != 1 for d in attribute(node, "dilations", ())):
        yield "dilations other than 1 are not supported", "pool without dilation"
    if node.op_type == "MaxPool" and _outputs(node) > 1:
        yield "a second output (indices) is not supported", "do not export the indices"
    if node.op_type == "LpPool" and attribute(node, "p", 2) not in (1, 2):
        yield "only p of 1 and 2 is supported", "pool with p = 2"


def _training(node: ir.Node) -> Iterator[tuple[str, str]]:
    fix = "export the model in evaluation mode: model.eval()"
    if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
        yield "the training form is not supported", fix
    mode = input_of(node, 2) if node.op_type == "Dropout" else None
    if mode is not None and constant(mode) is None:
        yield "the training mode must be a constant", fix


def _layer_norm(node: ir.Node) -> Iterator[tuple[str, str]]:
    if _outputs(node) > 1:
        yield "more than one output is not supported", "do not export mean and deviation"


def _attention(node: ir.Node) -> Iterator[tuple[str, str]]:
    if _outputs(node) > 1:
        yield "more than one output is not supported", "keep keys and values outside of Attention"
    if attribute(node, "softcap", 0.0):
        yield "softcap is not supported", "write the attention out: MatMul, Tanh, Softmax, MatMul"
    if attribute(node, "softmax_precision", 0):
        yield "a softmax precision is not supported", "leave softmax_precision out"
    keys, values = dims(input_of(node, 1)), dims(input_of(node, 2))
    if keys and values and None not in (keys[-1], values[-1]) and keys[-1] != values[-1]:
        yield (
            "keys and values of different sizes are not supported",
            "write the attention out: MatMul, Softmax, MatMul",
        )
    if attribute(node, "is_causal", 0) and input_of(node, 3) is not None:
        yield "a causal form with a mask is not supported", "put the causal mask into the mask"


def _modulo(node: ir.Node) -> Iterator[tuple[str, str]]:
    if not attribute(node, "fmod", 0) and dtype(input_of(node, 0)) not in (None, *_INTEGERS):
        yield "without fmod it takes int32 and int64 only", "use fmod = 1, or cast to int32"


def _single(node: ir.Node) -> Iterator[tuple[str, str]]:
    kind = dtype(input_of(node, 0))
    if kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        yield f"it takes no {kind.name.lower()}", "compute it in float32, with casts around it"


def _product(node: ir.Node) -> Iterator[tuple[str, str]]:
    left, right = dims(input_of(node, 0)), dims(input_of(node, 1))
    if left and right and len(left) == 1 and len(right) > 2:
        yield (
            "a vector times a stack of matrices is not supported",
            "give the vector a row axis: Unsqueeze, MatMul",
        )


def _clip(node: ir.Node) -> Iterator[tuple[str, str]]:
    if dtype(input_of(node, 0)) == ir.DataType.INT8:
        yield "it takes no int8", "clip before quantizing"


def _tensor_scatter(node: ir.Node) -> Iterator[tuple[str, str]]:
    if attribute(node, "mode", "linear") != "linear":
        yield "only the linear mode is supported", "write the cache with ScatterND"
    if len(dims(input_of(node, 0)) or range(4)) != 4:
        yield "the cache must have four axes", "reshape it to [batch, heads, length, size]"


FORMS: Mapping[str, Callable[[ir.Node], Iterator[tuple[str, str]]]] = {
    "Resize": _resize,
    "ScatterND": _scatter,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "BatchNormalization": _training,
    "Dropout": _training,
    "LayerNormalization": _layer_norm,
    "Attention": _attention,
    "Mod": _modulo,
    "Range": _single,
    "Celu": _single,
    "Clip": _clip,
    "MatMul": _product,
    "TensorScatter": _tensor_scatter,
}
"""Operator -> (what is refused, what to do) for a node."""

CONSTANT_INPUTS: Mapping[str, tuple[int, str]] = {
    **{
        f"Reduce{kind}": (1, "axes")
        for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    },
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
    "STFT": (1, "frame_step"),
}
"""Operator -> index and name of an input that must be known when the engine is built."""

_NOT_FOLDED = frozenset({"Range"})
"""Operators that the parser does not fold, whatever they are computed from."""

FLOAT_SIZES: Mapping[str, tuple[int, ...]] = {"Resize": (2,), "Upsample": (1,), "OneHot": (1,), "Range": (0, 1, 2)}
"""Operator -> inputs that decide a size: a model's input of a float type must not be one."""


SHAPE_POSITIONS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2),
    "Tile": (1,),
    "TopK": (1,),
}
"""Operator -> inputs whose values decide a shape."""

_PASSES = frozenset({"Cast", "Concat", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that hand on the values of a shape."""


def check_forms(view: View, target: Target) -> Iterator[Finding]:
    """Yields operators in a form that the parser refuses."""
    for site in view.of(*FORMS):
        for reason, fix in FORMS[site.node.op_type](site.node) if standard(site.node) else ():
            yield _found(site, "operator-form", f"the parser refuses it: {reason}", fix)
    for site in view.of(*CONSTANT_INPUTS):
        index, name = CONSTANT_INPUTS[site.node.op_type]
        value = input_of(site.node, index)
        if value is not None and standard(site.node) and not is_constant(value, without=_NOT_FOLDED):
            yield _found(
                site,
                "operator-form",
                f"the parser refuses {name} that are computed",
                f"make {name} constant",
            )
    for site in view.of(*FLOAT_SIZES):
        values = [input_of(site.node, index) for index in FLOAT_SIZES[site.node.op_type]]
        for value in values:
            if value is not None and value.is_graph_input() and value.dtype in _FLOATS:
                yield _found(
                    site,
                    "operator-form",
                    f"the parser refuses it: the float input '{value.name}' of the model decides a size",
                    "make it an integer, or a constant",
                )
                break
    yield from _scatter_elements(view, target)


def _scatter_elements(view: View, target: Target) -> Iterator[Finding]:
    """Yields ScatterElements with a reduction: a plugin of TensorRT, from 10.0 on; TensorRT-RTX has none."""
    for site in view.of("ScatterElements"):
        for reason, fix in _scatter(site.node):
            if target.builder == "tensorrt-rtx":
                yield _found(site, "operator-form", f"the parser refuses it: {reason}", fix)
            old = [v for v in target.tensorrt if version_tuple(v) < (10, 0)]
            if old:
                reason = f"{reason} before TensorRT 10.0: {releases(target, old)}"
                severity = ERROR if len(old) == len(target.tensorrt) else WARNING
                yield Finding("operator-form", severity, reason, fix, site.name, site.op, "", site.scope)


def check_shape_inputs(view: View, target: Target) -> Iterator[Finding]:
    """Yields integer inputs whose values decide a shape; once per input."""
    inputs, seen = set(view.inputs), set()
    for site in view.of(*SHAPE_POSITIONS):
        pending = [input_of(site.node, index) for index in SHAPE_POSITIONS[site.node.op_type]]
        while pending:
            value = pending.pop()
            producer = None if value is None else value.producer()
            if producer is not None and producer.op_type in _PASSES:
                pending.extend(producer.inputs)
            if value is None or value not in inputs or value in seen or value.dtype not in _INTEGERS:
                continue
            seen.add(value)
            limit = f", and values above {TOPK_LIMIT:,} pass the build" if site.node.op_type == "TopK" else ""
            yield Finding(
                "shape-input",
                NOTE,
                f"the values of input '{value.name}' decide a shape: the build fails without their range{limit}",
                "give the profile its values, or make it a constant",
                site.name,
                site.op,
                value.name or "",
                site.scope,
            )


def check_topk(view: View, target: Target) -> Iterator[Finding]:
    """Yields TopK with more elements than TensorRT gives."""
    for site in view.of("TopK"):
        count = constant(input_of(site.node, 1))
        if count is None or count.size != 1 or int(count.flat[0]) <= TOPK_LIMIT:
            continue
        yield _found(
            site,
            "topk-limit",
            f"k is {int(count.flat[0]):,}; the build fails above {TOPK_LIMIT:,}, after the parser took it",
            f"take at most {TOPK_LIMIT:,}, or select in two steps",
        )


def check_loops(view: View, target: Target) -> Iterator[Finding]:
    """Yields Loops without a condition whose body reads one."""
    for site in view.of("Loop"):
        body = attribute(site.node, "body", None)
        if input_of(site.node, 1) is not None or not isinstance(body, ir.Graph) or len(body.inputs) < 2:
            continue
        if any(True for _ in body.inputs[1].uses()):
            yield _found(
                site,
                "loop-condition",
                "its condition is left out and its body reads it: the parser refuses a node in there and does not "
                "say that the Loop is the cause",
                "give the Loop a constant condition of true",
            )


def check_attention_kernels(view: View, target: Target) -> Iterator[Finding]:
    """Yields Attention that parses and has no kernel: float32, heads of less than 9 or more than 256 elements."""
    for site in view.of("Attention"):
        kind = dtype(input_of(site.node, 0))
        head = _head_size(site.node)
        small = head is not None and not 8 < head <= 256
        if not standard(site.node) or kind is None or not (kind == ir.DataType.FLOAT or small):
            continue
        if _is_plain(site.node) or _is_decoding(site.node):
            continue
        why = "in float32" if kind == ir.DataType.FLOAT else f"with heads of {head} elements"
        known = target.builder == "tensorrt-rtx"
        found = _found(
            site,
            "attention-kernel",
            f"Attention {why} has no kernel: the parser takes it and the build fails"
            + ("" if known else " with TensorRT-RTX (not tried with this TensorRT)"),
            "compute it in fp16 or bf16, or write it out as MatMul, Softmax, MatMul",
        )
        yield found if known else replace(found, severity=WARNING)


def _is_plain(node: ir.Node) -> bool:
    """Whether it is taken apart into matrix products: 3D, no mask, not causal, one query head per key."""
    three = len(dims(input_of(node, 0)) or ()) == 3
    heads = attribute(node, "q_num_heads", 0) == attribute(node, "kv_num_heads", 0)
    return three and heads and input_of(node, 3) is None and not attribute(node, "is_causal", 0)


def _is_decoding(node: ir.Node) -> bool:
    """Whether it is one query against a padded cache, for which there is a kernel."""
    shape = dims(input_of(node, 0))
    return bool(shape) and shape is not None and shape[-2] == 1 and input_of(node, 6) is not None


def _head_size(node: ir.Node) -> int | None:
    shape = dims(input_of(node, 0))
    if not shape or shape[-1] is None:
        return None
    return shape[-1] if len(shape) == 4 else shape[-1] // max(attribute(node, "q_num_heads", 1), 1)


def _outputs(node: ir.Node) -> int:
    return sum(bool(o.name) for o in node.outputs)


def _found(site: Site, rule: str, reason: str, fix: str) -> Finding:
    tensor = next((o.name for o in site.node.outputs if o.name), "")
    return Finding(rule, ERROR, reason, fix, site.name, site.op, tensor, site.scope)
