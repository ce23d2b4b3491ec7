"""Proof that a quantized graph became a quantized engine: the network's types before the build, the size after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgemm.backends._trt.network import LOW
from edgemm.backends._trt.onnx_file import OnnxFile, Weights
from edgemm.backends._trt.request import BuildRequest
from edgemm.runtime._trt.sidecar import LayerPrecision

KERNELS, KERNEL = 2**20, 2**16
"""Bytes that an engine may have besides its weights, per profile and per layer of it: kernels, tables."""


def check_network(
    layers: Sequence[LayerPrecision], dtypes: Mapping[str, int], onnx: OnnxFile, request: BuildRequest
) -> None:
    """Checks that the network dequantizes what the graph does.

    Raises:
        BackendError: Q/DQ nodes of the graph are gone, or it is no longer in the dtype of the graph.
    """
    low = {dtype: count for dtype, count in onnx.dequantized.items() if dtype in LOW}
    kept = sum(layer.type == "DEQUANTIZE" for layer in layers)
    if kept < sum(low.values()):
        raise request.fail(
            f"the graph has {sum(low.values())} DequantizeLinear nodes, the network {kept}: the parser took "
            "quantization out.",
            "report this with the graph; convert for a float precision meanwhile",
        )
    for dtype in low:
        if not dtypes.get(dtype):
            raise request.fail(
                f"the graph has {low[dtype]} tensors of {dtype}, the network none.",
                "report this with the graph; convert for a float precision meanwhile",
            )


def size_limit(weights: Weights, layers: int, profiles: int) -> int | None:
    """Returns the size from on which an engine holds its quantized weights in float; None when size says nothing.

    TensorRT may keep one copy of the weights per profile, each in the layout of its kernels. The limit lies
    half-way between the largest engine of quantized weights and the smallest of float ones, if these are far
    enough apart.
    """
    copies = max(profiles, 1)
    kernels = KERNELS + layers * KERNEL
    largest = copies * (weights.quantized + weights.other + kernels)
    smallest = weights.as_float + weights.other
    return (largest + smallest) // 2 if smallest - largest > kernels else None


def check_size(size: int, weights: Weights, layers: int, request: BuildRequest) -> int | None:
    """Checks that an engine is as small as its quantized weights make it, and returns the limit, if there is one.

    Raises:
        BackendError: It has the size of the float weights.
    """
    if request.options.strip_weights:
        return None
    limit = size_limit(weights, layers, len(request.profiles))
    if limit is not None and size > limit:
        raise request.fail(
            f"the engine has {size:,} bytes; with {weights.quantized:,} bytes of quantized weights it should have "
            f"less than {limit:,}: its weights are not quantized.",
            "this TensorRT computes the graph in float: convert for fp16, or update TensorRT",
        )
    return limit
