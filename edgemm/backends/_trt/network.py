"""The ONNX graph as a TensorRT network, and the precision of every layer in it, known before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgemm.backends._trt.messages import errors_of, parser_failure
from edgemm.backends._trt.onnx_file import OnnxFile
from edgemm.backends._trt.request import PRECISIONS, BuildRequest
from edgemm.runtime._trt.module import dtype_name, has, is_rtx, logger, title
from edgemm.runtime._trt.sidecar import LayerPrecision
from edgemm.tensors import TensorSpec

LOW = ("int8", "float8_e4m3fn", "int4", "float4_e2m1fn")
"""Dtypes that data is quantized to."""

_METADATA = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_UNTYPED = frozenset(
    {"CONSTANT", "SHAPE", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE", "ASSERTION", "RECURRENCE", "ITERATOR"}
    | {"TRIP_LIMIT", "LOOP_OUTPUT", "CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT", "FILL"}
)
_MOVES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY", "SLICE", "RESIZE")


def make_builder(trt: Any, request: BuildRequest) -> Any:
    """Returns a builder.

    Raises:
        BackendError: TensorRT does not start, for want of a GPU for example.
    """
    log = logger(trt)
    log.messages.clear()
    try:
        if has(trt, "init_libnvinfer_plugins") and not is_rtx(trt):  # RTX has none to load
            trt.init_libnvinfer_plugins(
                log, ""
            )  # some ONNX operators are plugins: InstanceNormalization, RoiAlign
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:
        said = errors_of(log.messages) or [text for _, text in log.messages] or [str(error)]
        raise request.fail(
            f"{title(trt)} does not start: {said[0]}.",
            "classic TensorRT builds on the GPU that the engine is for: check the driver with nvidia-smi",
        ) from error


def strongly_typed(trt: Any) -> bool:
    """Returns whether networks can be told to compute in the precisions of the graph."""
    return has(trt, "NetworkDefinitionCreationFlag.STRONGLY_TYPED")


def parse(trt: Any, builder: Any, onnx: OnnxFile, request: BuildRequest) -> tuple[Any, Any]:
    """Returns the network of the request's ONNX file, and its parser, which holds the weights.

    Raises:
        BackendError: The parser refuses the graph; the message names the node.
    """
    flag = "STRONGLY_TYPED" if strongly_typed(trt) else "EXPLICIT_BATCH"
    network = builder.create_network(1 << int(getattr(trt.NetworkDefinitionCreationFlag, flag)))
    log = logger(trt)
    parser = trt.OnnxParser(network, log)
    log.messages.clear()
    if not parser.parse_from_file(str(request.onnx)):
        raise parser_failure(parser, log.messages, onnx, request, title(trt))
    if not network.num_outputs:
        raise request.fail("the graph has no outputs.", "export or convert the model again")
    if has(trt, "LayerType.ATTENTION_INPUT") and has(trt, "IAttention.decomposable"):
        _allow_decomposition(trt, network)
    return network, parser


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Lets attention be computed by several kernels where there is no fused one: none is for float32."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def io_specs(network: Any, onnx: OnnxFile) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the network's inputs and outputs; sizes that it does not know have the graph's names."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    named = {s.name: s for s in (*onnx.inputs, *onnx.outputs)}
    return tuple(_spec(t, named) for t in inputs), tuple(_spec(t, named) for t in outputs)


def _spec(tensor: Any, named: Mapping[str, TensorSpec]) -> TensorSpec:
    sizes = tuple(tensor.shape)
    known = named.get(tensor.name)
    names = known.shape if known is not None and len(known.shape) == len(sizes) else ()
    shape = tuple(
        int(size) if size >= 0 else names[axis] if names else f"{tensor.name}:{axis}"
        for axis, size in enumerate(sizes)
    )
    return TensorSpec(tensor.name, dtype_name(tensor.dtype), shape)


def layer_precisions(network: Any) -> tuple[LayerPrecision, ...]:
    """Returns the precision of every layer, in the network's order."""
    sources: dict[str, str] = {}  # output of a DEQUANTIZE -> dtype that it reads
    result = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        read = [tensor for tensor in inputs if tensor is not None]
        quantized = ""
        if kind == "DEQUANTIZE":
            sources[outputs[0].name] = dtype_name(read[0].dtype)
        elif kind in _MOVES and read and read[0].name in sources:
            sources[outputs[0].name] = quantized = sources[read[0].name]
        elif len(read) > 1 and kind not in ("QUANTIZE", "SHAPE"):
            found = {sources.get(tensor.name, "") for tensor in read[:2]}
            quantized = found.pop() if len(found) == 1 else ""
        result.append(
            LayerPrecision(
                str(layer.name), kind, _node(layer), tuple(dtype_name(t.dtype) for t in outputs), quantized
            )
        )
    return tuple(result)


def _node(layer: Any) -> str:
    """Returns the name of the ONNX node that a layer was made of, empty for layers that the parser adds."""
    match = _METADATA.search(str(getattr(layer, "metadata", "")))
    return match[1] if match else ""


def totals(layers: tuple[LayerPrecision, ...]) -> dict[str, int]:
    """Returns how many layers compute in each precision; constants, Q/DQ and casts are not counted."""
    result: dict[str, int] = {}
    for layer in layers:
        if layer.type in ("CONSTANT", "QUANTIZE", "DEQUANTIZE", "CAST", "SHAPE") or not layer.outputs:
            continue
        precision = layer.quantized or layer.outputs[0]
        result[precision] = result.get(precision, 0) + 1
    return result


def tensor_dtypes(network: Any) -> dict[str, int]:
    """Returns dtype -> how many tensors of the network have it."""
    result: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for i in range(layer.num_outputs):
            name = dtype_name(layer.get_output(i).dtype)
            result[name] = result.get(name, 0) + 1
    for index in range(network.num_inputs):
        name = dtype_name(network.get_input(index).dtype)
        result[name] = result.get(name, 0) + 1
    return result


def check_precisions(dtypes: Mapping[str, int], onnx: OnnxFile, request: BuildRequest) -> None:
    """Checks that the network has every precision of the plan.

    Raises:
        BackendError: One is missing: the graph was not converted, or the parser lost it.
    """
    for precision in request.precisions:
        dtype = PRECISIONS.get(precision)
        if dtype is None:
            raise request.fail(
                f"no precision '{precision}' (precisions: {', '.join(PRECISIONS)}).", "float32 needs no mention"
            )
        if not dtypes.get(dtype) and dtype not in onnx.dtypes.values():
            raise request.fail(
                f"the plan has {precision}, and no tensor of the network is {dtype}.",
                "precision is in the graph, not an option of the build: convert the model for this target",
            )


def type_weakly(trt: Any, network: Any, config: Any, onnx: OnnxFile, dtypes: Mapping[str, int]) -> None:
    """Turns on the precisions of a graph where there is no strong typing (8.6), and keeps float32 where it is.

    There a precision needs a flag, and with the flag any layer may be computed in it: layers whose ONNX node is
    declared to give float32 are held to it.
    """
    found = {*dtypes, *onnx.dtypes.values(), *onnx.dequantized}
    for dtype, flag in (("int8", "INT8"), ("float16", "FP16"), ("float8_e4m3fn", "FP8"), ("bfloat16", "BF16")):
        if dtype in found and has(trt, f"BuilderFlag.{flag}"):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if "float16" not in found or not has(trt, "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"):
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        node = onnx.named(_node(layer) or str(layer.name))
        if layer.type.name in _UNTYPED or node is None:
            continue
        if all(onnx.dtypes.get(name) == "float32" for name in node.outputs):
            layer.precision = trt.DataType.FLOAT
            for i in range(layer.num_outputs):
                if layer.get_output(i).dtype == trt.DataType.FLOAT:
                    layer.set_output_type(i, trt.DataType.FLOAT)
