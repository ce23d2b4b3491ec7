"""Number formats: what TensorRT has not, what the target has not, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from edgemm.lint.findings import ERROR, WARNING, Finding
from edgemm.lint.operator_data import IMPORTED, version_tuple
from edgemm.lint.operators import releases
from edgemm.lint.quantization import DEQUANTIZE, QUANTIZE
from edgemm.lint.view import Site, View, dims, dtype, input_of, is_constant, standard

if TYPE_CHECKING:
    from edgemm.backends.targets import Target

_T = ir.DataType
_UNKNOWN = frozenset(
    t
    for t in _T
    if t
    not in (
        _T.UNDEFINED,
        *(_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1),
        *(_T.INT8, _T.INT32, _T.INT64, _T.INT4, _T.UINT8, _T.BOOL),
    )
)
"""Types that the parser does not convert; double it takes for float."""

_QUANTIZED = frozenset({_T.INT4, _T.FLOAT4E2M1, _T.FLOAT8E4M3FN})
_TAKES_UINT8 = frozenset({QUANTIZE, DEQUANTIZE, "Constant", "Equal"})

FORMATS = {_T.BFLOAT16: "bf16", _T.FLOAT8E4M3FN: "fp8", _T.INT4: "int4", _T.FLOAT4E2M1: "fp4"}
"""Types that only some GPUs have -> their name in `Target.precisions`."""

FORMAT_SINCE = {"bf16": "10.0", "fp8": "9.0", "int4": "10.1", "fp4": "10.8"}
"""First version of TensorRT that has a format."""

_PRODUCTS = ("MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN")
_LENIENT = frozenset({"Pad", "Clip"})
"""Operators whose constants the parser converts."""

_REAL = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.INT32, _T.INT64, _T.INT8, _T.BOOL})


def check_tensor_types(view: View, target: Target) -> Iterator[Finding]:
    """Yields inputs, weights and casts of types that TensorRT has not."""
    for value in view.inputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            yield _of_input(value, "the parser takes tensors only", "pass tensors in place of lists and options")
        elif value.dtype in _UNKNOWN:
            yield _of_input(
                value,
                f"the parser refuses {_name(value.dtype)} inputs, and names neither node nor input",
                "take int32, int64 or float, and convert before the model",
            )
    for graph in view.model.graphs():
        for weight in graph.initializers.values():
            kind = None if weight.const_value is None else weight.const_value.dtype
            # what Q and DQ read is theirs to tell
            if kind in _UNKNOWN and not all(n.op_type in (QUANTIZE, DEQUANTIZE) for n, _ in weight.uses()):
                yield _of_input(
                    weight,
                    f"the parser refuses {_name(kind)} weights, and names neither node nor weight",
                    "store it as int8, int32, int64 or float",
                )
    yield from _casts(view)
    yield from _uint8(view)


def _casts(view: View) -> Iterator[Finding]:
    for site in view.of("Cast", "CastLike"):
        kinds = dtype(input_of(site.node, 0)), dtype(site.node.outputs[0])
        narrow = next((k for k in kinds if k in _QUANTIZED), None)
        if kinds[1] in _UNKNOWN:
            yield _of_site(
                site,
                f"the parser refuses to cast to {_name(kinds[1])}",
                "cast to a type that TensorRT has: int32, float",
            )
        elif narrow is not None and kinds[0] != kinds[1]:
            yield _of_site(
                site,
                f"the build fails: {_name(narrow)} comes from QuantizeLinear and goes to DequantizeLinear only",
                "quantize in place of casting",
            )


def _uint8(view: View) -> Iterator[Finding]:
    """Yields uint8 inside of the graph: it may be an input of the model that is cast, and an output."""
    reason, fix = "the parser refuses uint8 inside of a graph", "cast a uint8 input to float or int32 at once"
    outputs = set(view.model.graph.outputs)
    for site in view.sites:
        node = site.node
        if not standard(node) or node.op_type not in IMPORTED or node.op_type in _TAKES_UINT8:
            continue
        made = next((o for o in node.outputs if o.dtype == _T.UINT8 and o not in outputs), None)
        read = next((i for i in node.inputs if i is not None and i.dtype == _T.UINT8), None)
        if made is not None:
            yield _of_site(site, reason, fix, made)
        elif read is not None and node.op_type not in ("Cast", "CastLike", "Identity"):
            yield _of_site(site, reason, fix, read)


def check_doubles(view: View, target: Target) -> Iterator[Finding]:
    """Yields double, which TensorRT computes in float."""
    reason = "TensorRT computes double in float32, without a word"
    fix = "convert to float32 in the model, and check that float32 is enough"
    for value in view.inputs:
        if value.dtype == _T.DOUBLE:
            yield _of_input(value, f"{reason}; the engine's input is float32, too", fix, WARNING, "double")
    for site in view.of("Cast"):
        if dtype(site.node.outputs[0]) == _T.DOUBLE:
            yield _of_site(site, reason, fix, None, WARNING, "double")


def check_precisions(view: View, target: Target) -> Iterator[Finding]:
    """Yields formats that the target's GPU has not, or not with every TensorRT it may have; one per format."""
    for kind, name in FORMATS.items():
        sites = [s for s in view.sites if any(v is not None and v.dtype == kind for v in _values(s.node))]
        fed = [v for v in view.inputs if v.dtype == kind]
        if not sites and not fed:
            continue
        old = [v for v in target.tensorrt if version_tuple(v) < version_tuple(FORMAT_SINCE[name])]
        if name not in target.precisions and target.builder != "ort-tensorrt":
            sm = f"SM {target.sm}" if target.sm else target.name
            severity = ERROR
            reason = f"{name} does not exist on {sm}"
            if target.builder == "tensorrt-rtx":
                reason += ": the build fails, or goes through when it is not told the SM and fails on the device"
            fix = f"use {', '.join(target.precisions)}"
        elif old:
            severity = ERROR if len(old) == len(target.tensorrt) else WARNING
            reason = f"{name} exists from TensorRT {FORMAT_SINCE[name]} on; {releases(target, old)} has it not"
            fix = "use a newer JetPack, or another precision"
        else:
            continue
        if sites:
            count = f" ({len(sites)} nodes)" if len(sites) > 1 else ""
            value = next(v for v in _values(sites[0].node) if v is not None and v.dtype == kind)
            yield _of_site(sites[0], reason + count, fix, value, severity, "precision")
        else:
            yield _of_input(fed[0], reason, fix, severity, "precision")


def check_float_products(view: View, target: Target) -> Iterator[Finding]:
    """Yields matrix products and 3D deconvolutions in float32, which TensorRT-RTX has not on Turing."""
    if target.builder != "tensorrt-rtx" or target.sm != 75:
        return
    for site in view.of(*_PRODUCTS, "ConvTranspose"):
        node = site.node
        deconvolution = node.op_type == "ConvTranspose"
        if (node.op_type == "Einsum" and len(node.inputs) < 2) or (
            deconvolution and len(dims(input_of(node, 0)) or ()) != 5
        ):
            continue
        if dtype(input_of(node, 0)) in (_T.FLOAT, _T.DOUBLE) and not all(map(is_constant, node.inputs)):
            what = "3D deconvolutions" if deconvolution else "matrix products"
            yield _of_site(
                site,
                f"TensorRT-RTX has no float32 {what} on SM 75: the parser takes it and the build fails",
                "compute it in fp16",
                None,
                ERROR,
                "float-product",
            )


def check_mixed_types(view: View, target: Target) -> Iterator[Finding]:
    """Yields nodes whose inputs must have one type and have two."""
    for site in view.sites:
        node = site.node
        if not standard(node):
            continue
        for values in _bound_together(node, view.opset):
            kinds = {v.dtype: v for v in values if v.dtype in _REAL}
            if len(kinds) > 1:
                first, second = list(kinds.items())[:2]
                lenient = node.op_type in _LENIENT
                yield _of_site(
                    site,
                    f"'{first[1].name}' is {_name(first[0])} and '{second[1].name}' is {_name(second[0])}: "
                    + ("ONNX forbids it; the parser converts" if lenient else "the parser refuses to mix them"),
                    "cast one of them",
                    second[1],
                    WARNING if lenient else ERROR,
                    "mixed-types",
                )


def _bound_together(node: ir.Node, opset: int) -> Iterator[list[ir.Value]]:
    """Yields the inputs that share a type parameter of the operator's schema."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return
    groups: dict[str, list[ir.Value]] = {}
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)] if schema.inputs else None
        if value is None or formal is None or (index >= len(schema.inputs) and not _variadic(formal)):
            continue
        if not _variadic(formal) or formal.is_homogeneous:
            groups.setdefault(formal.type_str, []).append(value)
    yield from (values for values in groups.values() if len(values) > 1)


def _variadic(formal: onnx.defs.OpSchema.FormalParameter) -> bool:
    return bool(formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic)


def _values(node: ir.Node) -> list[ir.Value | None]:
    # the output of Q first: it is what has the type, its zero point only says so
    return [*node.outputs, *node.inputs] if node.op_type == QUANTIZE else [*node.inputs, *node.outputs]


def _name(kind: ir.DataType | None) -> str:
    return "?" if kind is None else kind.name.lower()


def _of_input(value: ir.Value, reason: str, fix: str, severity: str = ERROR, rule: str = "tensor-type") -> Finding:
    return Finding(rule, severity, reason, fix, tensor=value.name or "")


def _of_site(
    site: Site,
    reason: str,
    fix: str,
    value: ir.Value | None = None,
    severity: str = ERROR,
    rule: str = "tensor-type",
) -> Finding:
    value = value or next((o for o in site.node.outputs if o.name), None)
    tensor = (value.name or "") if value is not None else ""
    return Finding(rule, severity, reason, fix, site.name, site.op, tensor, site.scope)
