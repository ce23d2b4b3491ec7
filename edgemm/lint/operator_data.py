"""What TensorRT's ONNX parser knows, as data.

`IMPORTED` is what `OnnxParser.supports_operator` of TensorRT-RTX 1.7.1.116 says about every operator in ONNX 1.23;
building ONNX's own node tests then showed what it says yes to and refuses all the same. Versions are from the
importers of onnx-tensorrt 8.5 to 10.1, its change log (to 10.6), and the Python API of the later ones.
"""

from __future__ import annotations

IMPORTED = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "ArgMax",
        "ArgMin",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Attention",
        "AveragePool",
        "BatchNormalization",
        "BlackmanWindow",
        "Cast",
        "CastLike",
        "CausalConvWithState",
        "Ceil",
        "Celu",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "Cos",
        "Cosh",
        "CumSum",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Dropout",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "GRU",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "GridSample",
        "GroupNormalization",
        "HammingWindow",
        "HannWindow",
        "HardSigmoid",
        "HardSwish",
        "Hardmax",
        "Identity",
        "If",
        "InstanceNormalization",
        "IsInf",
        "IsNaN",
        "LRN",
        "LSTM",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "LinearAttention",
        "Log",
        "LogSoftmax",
        "Loop",
        "LpNormalization",
        "LpPool",
        "MatMul",
        "Max",
        "MaxPool",
        "Mean",
        "MeanVarianceNormalization",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "PRelu",
        "Pad",
        "Pow",
        "QuantizeLinear",
        "RMSNormalization",
        "RNN",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Resize",
        "ReverseSequence",
        "RoiAlign",
        "RotaryEmbedding",
        "Round",
        "STFT",
        "Scan",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Shape",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Size",
        "Slice",
        "Softmax",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "TensorScatter",
        "ThresholdedRelu",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Upsample",
        "Where",
        "Xor",
    ]
)
"""Operators that the parser has an importer for. It looks at the name only, never at the domain."""

NEEDS_PLUGIN = frozenset({"DeformConv", "NonZero", "RoiAlign"})
"""Made by plugins of TensorRT's own library (libnvinfer_plugin), which TensorRT-RTX does not have."""

NEEDS_PLUGIN_ANYWHERE = frozenset({"CausalConvWithState", "LinearAttention"})
"""The parser knows them, and looks for a plugin that TensorRT-RTX does not have; of TensorRT it is not known."""

NO_KERNEL_RTX = frozenset({"NonMaxSuppression"})
"""TensorRT-RTX parses them and then has no kernel."""

SINCE = {
    "GroupNormalization": "8.6",
    "IsInf": "8.6",
    "LayerNormalization": "8.6",
    "CastLike": "9.2",
    "Hardmax": "9.2",
    "Gelu": "10.0",
    "Mish": "10.0",
    "DeformConv": "10.1",
    "BlackmanWindow": "10.4",
    "HammingWindow": "10.4",
    "HannWindow": "10.4",
    "STFT": "10.5",
    "RMSNormalization": "10.13",
    "Swish": "10.13",
    "Attention": "10.14",
    "RotaryEmbedding": "10.15",
    "TensorScatter": "10.15",
}
"""First version of TensorRT that parses an operator, where that is not older than 8.5."""

OPSETS = {"8.5": 16, "8.6": 17, "10.0": 20, "10.9": 22, "10.13": 24}
"""Version of TensorRT -> newest opset that its parser was written for; versions between have that of the older."""

BROADCAST_OPSET = 7
"""ONNX has today's broadcasting from this opset on; the parser has no other."""

BROADCASTS = tuple(
    [
        "Add",
        "And",
        "Div",
        "Equal",
        "Gemm",
        "Greater",
        "Less",
        "Max",
        "Mean",
        "Min",
        "Mul",
        "Or",
        "Pow",
        "PRelu",
        "Sub",
        "Sum",
        "Xor",
    ]
)
"""Operators that broadcast their inputs."""

SAME_ELSEWHERE = frozenset(
    {("com.microsoft", "Gelu"), ("com.microsoft", "QuantizeLinear"), ("com.microsoft", "DequantizeLinear")}
)
"""Operators of other domains that compute what ONNX's own of that name computes."""


def version_tuple(version: str) -> tuple[int, ...]:
    """Returns a version to compare with: `"10.3"` is `(10, 3)`."""
    return tuple(int(part) for part in version.split("."))


def newest_opset(version: str) -> int:
    """Returns the newest opset that the parser of a TensorRT version was written for."""
    wanted = version_tuple(version)
    return max((opset for since, opset in OPSETS.items() if version_tuple(since) <= wanted), default=0)
