"""Graphs that TensorRT refuses, takes silently, or is right to take: one list for the lint and the real builder.

A case says which rule finds what on which targets, and what TensorRT-RTX does with the graph there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx.parser

RTX = ("rtx-ampere", "rtx-blackwell")
TURING = ("rtx-turing",)

PARSER, BUILDER, ACCEPTS = "refused by the parser", "refused by the builder", "accepted"


@dataclass(frozen=True)
class Case:
    """A graph with what is expected of it.

    Attributes:
        name: Test id.
        text: ONNX text, without its header.
        rule: The rule that finds something, or None for a graph that is as it should be.
        verdict: What TensorRT-RTX does with it on each of `targets`.
        severity: Of the finding.
        node: The node that the finding names; None where it names a tensor only.
        targets: Where `rule` and `verdict` hold.
        clean: Targets for which `rule` finds nothing.
        also: Further rules that find something there.
        weights: Initializers that are too long for text.
        opset: Of the standard domain.
        imports: Further opset imports, and what follows the graph (local functions).
        shapes: Optimization profile: input -> (min, opt, max).
    """

    name: str
    text: str
    rule: str | None
    verdict: str = PARSER
    severity: str = "error"
    node: str | None = None
    targets: tuple[str, ...] = RTX
    clean: tuple[str, ...] = ("cpu",)
    also: tuple[str, ...] = ()
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    opset: int = 20
    imports: str = ""
    after: str = ""
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def proto(self) -> onnx.ModelProto:
        """Returns the model; every node has a name."""
        header = f'<ir_version: 10, opset_import: ["": {self.opset}{self.imports}]>\n'
        proto = onnx.parser.parse_model(header + self.text + self.after)
        for name, array in self.weights.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        name_nodes(proto.graph)
        for function in proto.functions:
            for node in function.node:
                node.name = node.name or node.output[0]
        return proto


def name_nodes(graph: onnx.GraphProto) -> None:
    """Names every node after its first output, as exporters do."""
    for node in graph.node:
        node.name = node.name or next(filter(None, node.output))
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                name_nodes(attribute.g)


def normal(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def integers(*shape: int, dtype: type = np.int8) -> np.ndarray:
    return np.random.default_rng(0).integers(-7, 8, shape).astype(dtype)


def full(value: float, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.full(shape, value, dtype)


CONV = """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
    q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
    v = DequantizeLinear<axis = 0>(w, sw, zw)
    y = Conv<kernel_shape = [1, 1]>(d, v)
}"""
CONV_WEIGHTS: dict[str, np.ndarray] = {
    "sx": full(0.05),
    "zx": full(0, dtype=np.int8),
    "w": integers(32, 16, 1, 1),
    "sw": full(0.01, 32),
    "zw": full(0, 32, dtype=np.int8),
}


def conv(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return CONV_WEIGHTS | changed


MATMUL = """g (float[32,64] x) => (float[32,64] y) {
    q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
    v = DequantizeLinear<axis = AXIS>(w, sw, zw)
    y = MatMul(d, v)
}"""
MATMUL_WEIGHTS = {
    "sx": full(0.05),
    "zx": full(0, dtype=np.int8),
    "w": integers(64, 64),
    "sw": full(0.01, 64),
    "zw": full(0, 64, dtype=np.int8),
}


def cast_weights(dtype: type) -> dict[str, np.ndarray]:
    """Returns per-tensor Q/DQ parameters of `dtype` around a float weight."""
    return {"s": full(0.05), "z": np.zeros((), np.float32).astype(dtype), "w": normal(64, 64)}


QDQ = """g (float[32,64] x) => (float[32,64] y) {
    qx = QuantizeLinear(x, s, z)  dx = DequantizeLinear(qx, s, z)
    qw = QuantizeLinear(w, s, z)  dw = DequantizeLinear(qw, s, z)
    y = MatMul(dx, dw)
}"""


def elementwise(op: str) -> str:
    return f"g (float[4,8] x) => (float[4,8] y) {{ y = {op}(x) }}"


CASES = (
    # quantization
    Case("zero point", CONV, "zero-point", node="q", weights=conv(zx=full(3, dtype=np.int8))),
    Case(
        "zero point of one channel",
        CONV,
        "zero-point",
        node="v",
        weights=conv(zw=np.eye(1, 32, 5, dtype=np.int8)[0]),
    ),
    Case("uint8", CONV, "quantized-type", ACCEPTS, node="q", weights=conv(zx=full(0, dtype=np.uint8))),
    Case("uint8 by default", CONV.replace(", zx", ""), "quantized-type", ACCEPTS, node="q", weights=conv()),
    Case("uint8 zero point 128", CONV, "zero-point", node="q", weights=conv(zx=full(128, dtype=np.uint8))),
    Case("int16", CONV, "quantized-type", node="q", weights=conv(zx=full(0, dtype=np.int16)), opset=21),
    Case(
        "uint4",
        """g (float[32,64] x) => (float[32,64] y) { v = DequantizeLinear<axis = 0, block_size = 32>(w, s)
            y = MatMul(x, v) }""",
        "quantized-type",
        node="v",
        weights={"w": integers(64, 64).clip(0).astype(ml_dtypes.uint4), "s": full(0.1, 2, 64)},
        opset=21,
    ),
    Case(
        "int32 bias",
        """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
            b = DequantizeLinear<axis = 0>(bq, sb)  y = Conv<kernel_shape = [1, 1]>(x, w, b) }""",
        "quantized-type",
        node="b",
        weights={"w": normal(32, 16, 1, 1), "bq": integers(32, dtype=np.int32), "sb": full(0.1, 32)},
    ),
    Case("scale of zero", CONV, "scale", node="q", weights=conv(sx=full(0))),
    Case(
        "negative scale", CONV, "scale", node="v", weights=conv(sw=np.r_[full(0.1, 31), -0.1].astype(np.float32))
    ),
    Case("nan scale", CONV, "scale", node="q", weights=conv(sx=full(np.nan))),
    Case(
        "computed scale",
        """g (float[32,64] x, float s) => (float[32,64] y) {
            q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }""",
        "scale",
        ACCEPTS,
        "warning",
        node="q",
        weights={"z": full(0, dtype=np.int8)},
    ),
    Case(
        "computed zero point",
        """g (float[4,8] x, int8 z) => (float[4,8] y) <float s = {0.1}> {
            q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }""",
        "zero-point",
        BUILDER,
        node="q",
    ),
    Case(
        "uint8 weight",
        "g (float[4,64] x) => (float[4,64] y) { v = DequantizeLinear(w, s)  y = MatMul(x, v) }",
        "quantized-type",
        node="v",
        weights={"w": full(200, 64, 64, dtype=np.uint8), "s": full(0.1)},
    ),
    Case(
        "conv weight along its inputs",
        CONV.replace("axis = 0", "axis = 1"),
        "weight-axis",
        ACCEPTS,
        "warning",
        node="v",
        weights=conv(sw=full(0.01, 16), zw=full(0, 16, dtype=np.int8)),
    ),
    Case(
        "deconvolution weight along its inputs",
        """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
            q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
            v = DequantizeLinear<axis = 0>(w, sw, zw)  y = ConvTranspose<kernel_shape = [1, 1]>(d, v) }""",
        "weight-axis",
        ACCEPTS,
        "warning",
        node="v",
        weights=conv(w=integers(16, 32, 1, 1), sw=full(0.01, 16), zw=full(0, 16, dtype=np.int8)),
    ),
    Case(
        "matmul weight along its inputs",
        MATMUL.replace("AXIS", "0"),
        "weight-axis",
        ACCEPTS,
        "warning",
        node="v",
        weights=MATMUL_WEIGHTS,
    ),
    Case(
        "gemm weight along its inputs",
        MATMUL.replace("AXIS", "1").replace("MatMul", "Gemm<transB = 1>"),
        "weight-axis",
        ACCEPTS,
        "warning",
        node="v",
        weights=MATMUL_WEIGHTS,
    ),
    Case(
        "per-channel activation",
        CONV,
        "activation-scale",
        ACCEPTS,
        "warning",
        node="q",
        weights=conv(sx=full(0.05, 16), zx=full(0, 16, dtype=np.int8)),
    ),
    # operators
    Case("unique", "g (float[8] x) => (float[n] y) { y = Unique(x) }", "operator", node="y"),
    Case("det", "g (float[4,4] x) => (float y) { y = Det(x) }", "operator", node="y"),
    Case(
        "compress",
        "g (float[8] x, bool[8] c) => (float[n] y) { y = Compress(x, c) }",
        "operator",
        node="y",
    ),
    Case(
        "bitwise",
        "g (int32[8] x) => (int32[8] y) { y = BitwiseAnd(x, x) }",
        "operator",
        node="y",
    ),
    Case(
        "sequence",
        "g (float[8] x) => (float[16] y) { s = SequenceConstruct(x, x)  y = ConcatFromSequence<axis = 0>(s) }",
        "operator",
        node="s",
    ),
    Case(
        "affine grid",
        "g (float[1,2,3] t) => (float[1,4,4,2] y) <int64[4] n = {1, 3, 4, 4}> { y = AffineGrid(t, n) }",
        "operator",
        node="y",
    ),
    Case(
        "qlinear matmul",
        """g (uint8[4,8] x, uint8[8,4] w) => (uint8[4,4] y) <float s = {0.1}, uint8 z = {0}> {
            y = QLinearMatMul(x, s, z, w, s, z, s, z) }""",
        "operator",
        node="y",
    ),
    Case(
        "dynamic quantization",
        "g (float[4,8] x) => (uint8[4,8] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }",
        "operator",
        node="y",
    ),
    Case(
        "dft",
        'g (float[1,16,1] x) => (float[1,16,2] y) <int64 a = {1}> { y = DFT(x, "", a) }',
        "operator",
        node="y",
    ),
    Case(
        "non-zero",
        "g (float[4,8] x) => (int64[2,n] y) { y = NonZero(x) }",
        "operator",
        node="y",
        clean=("cpu", "jetson-orin-nano", "jetson-thor"),
    ),
    Case(
        "roi align",
        """g (float[1,4,8,8] x, float[2,4] r, int64[2] i) => (float[2,4,2,2] y) {
            y = RoiAlign<output_height = 2, output_width = 2>(x, r, i) }""",
        "operator",
        node="y",
        clean=("cpu", "jetson-orin-nano", "jetson-thor"),
    ),
    Case(
        "non-maximum suppression",
        """g (float[1,16,4] b, float[1,2,16] s) => (int64[n,3] y)
            <int64 k = {8}, float iou = {0.5}, float t = {0.1}> { y = NonMaxSuppression(b, s, k, iou, t) }""",
        "operator",
        BUILDER,
        node="y",
        clean=("cpu", "jetson-orin-nano", "jetson-thor"),
    ),
    Case(
        "matmul of 4 bits",
        """g (float[1,32] x) => (float[1,16] y) { y = com.microsoft.MatMulNBits<K = 32, N = 16, bits = 4,
            block_size = 32>(x, w, s) }""",
        "operator-domain",
        node="y",
        weights={"w": integers(16, 1, 16, dtype=np.uint8), "s": full(0.1, 16)},
        imports=', "com.microsoft": 1',
    ),
    Case(
        "custom operator",
        "g (float[4,8] x) => (float[4,8] y) { y = my.own.Thing(x) }",
        "operator-domain",
        node="y",
        imports=', "my.own": 1',
    ),
    Case(
        "unique in a branch",
        """g (bool c, float[8] x) => (float[n] y) {
            y = If (c) <then_branch = t () => (float[n] u) { u = Unique(x) },
                        else_branch = e () => (float[8] v) { v = Identity(x) }> }""",
        "operator",
        node="u",
    ),
    Case(
        "det in a local function",
        "g (float[4,4] x) => (float y) { y = local.Bad(x) }",
        "operator",
        node="b",
        imports=', "local": 1',
        after='\n<domain: "local", opset_import: ["": 20]> Bad (a) => (b) { c = Relu(a)  b = Det(c) }',
    ),
    # attributes
    Case(
        "antialias",
        """g (float[1,3,16,16] x) => (float[1,3,8,8] y) <float[4] s = {1.0, 1.0, 0.5, 0.5}> {
            y = Resize<mode = "linear", antialias = 1>(x, "", s) }""",
        "operator-form",
        node="y",
    ),
    Case(
        "scatter with reduction",
        """g (float[4,8] x, int64[2,8] i, float[2,8] u) => (float[4,8] y) {
            y = ScatterElements<axis = 0, reduction = "add">(x, i, u) }""",
        "operator-form",
        node="y",
        clean=("cpu", "jetson-thor"),
    ),
    Case(
        "many of top k",
        "g (float[1,8000] x) => (float[1,4000] v, int64[1,4000] i) <int64[1] k = {4000}> { v, i = TopK(x, k) }",
        "topk-limit",
        BUILDER,
        node="v",
    ),
    Case(
        "loop without condition that reads it",
        """g (float[4] x) => (float[4] y) <int64 n = {3}> {
            y = Loop (n, "", x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] o) {
                d = Identity(c)  o = Add(a, a) }> }""",
        "loop-condition",
        node="y",
    ),
    # types
    Case("int16 input", "g (int16[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", "tensor-type"),
    Case("uint16 input", "g (uint16[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", "tensor-type"),
    Case("uint32 input", "g (uint32[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", "tensor-type"),
    Case("string input", "g (string[4] x) => (string[4] y) { y = Identity(x) }", "tensor-type"),
    Case("double input", "g (double[4] x) => (double[4] y) { y = Add(x, x) }", "double", ACCEPTS, "warning"),
    Case(
        "cast to double",
        "g (float[4] x) => (float[4] y) { d = Cast<to = 11>(x)  e = Add(d, d)  y = Cast<to = 1>(e) }",
        "double",
        ACCEPTS,
        "warning",
        node="d",
    ),
    Case(
        "cast to int16",
        "g (float[4] x) => (float[4] y) { d = Cast<to = 5>(x)  y = Cast<to = 1>(d) }",
        "tensor-type",
    ),
    Case(
        "half and single",
        "g (float16[4,32] x) => (float16[4,32] y) { y = MatMul(x, w) }",
        "mixed-types",
        node="y",
        weights={"w": normal(32, 32)},
    ),
    Case(
        "fp8",
        QDQ,
        "precision",
        BUILDER,
        targets=("rtx-ampere", "rtx-turing"),
        clean=("cpu", "rtx-ada", "rtx-blackwell"),
        node="qx",
        also=("float-product",),
        weights=cast_weights(ml_dtypes.float8_e4m3fn),
        opset=21,
    ),
    Case(
        "fp8 e5m2", QDQ, "quantized-type", PARSER, node="qx", weights=cast_weights(ml_dtypes.float8_e5m2), opset=21
    ),
    Case(
        "bf16",
        "g (bfloat16[4,32] x) => (bfloat16[4,32] y) { y = MatMul(x, w) }",
        "precision",
        BUILDER,
        targets=TURING,
        clean=("cpu", "rtx-ampere"),
        weights={"w": normal(32, 32).astype(ml_dtypes.bfloat16)},
    ),
    Case(
        "int4 weights",
        """g (float16[32,64] x) => (float16[32,64] y) { v = DequantizeLinear<axis = 0, block_size = 32>(w, s)
            y = MatMul(x, v) }""",
        "precision",
        BUILDER,
        targets=TURING,
        clean=("cpu", "rtx-ampere"),
        node="v",
        weights={"w": integers(64, 64).astype(ml_dtypes.int4), "s": full(0.1, 2, 64, dtype=np.float16)},
        opset=21,
    ),
    Case(
        "fp4 weights",
        """g (float16[32,64] x) => (float16[32,64] y) { v = DequantizeLinear<axis = 0, block_size = 16>(w, s)
            y = MatMul(x, v) }""",
        "precision",
        BUILDER,
        targets=("rtx-ampere", "rtx-ada"),
        clean=("cpu", "rtx-blackwell"),
        node="v",
        weights={"w": normal(64, 64).astype(ml_dtypes.float4_e2m1fn), "s": full(0.1, 4, 64, dtype=np.float16)},
        opset=23,
    ),
    Case(
        "attention in single precision",
        """g (float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v) => (float[1,2,8,16] y) {
            y = Attention(q, k, v) }""",
        "attention-kernel",
        BUILDER,
        node="y",
        opset=23,
    ),
    Case(
        "matmul in single precision",
        "g (float[4,32] x) => (float[4,32] y) { y = MatMul(x, w) }",
        "float-product",
        BUILDER,
        node="y",
        targets=TURING,
        clean=("cpu", *RTX),
        weights={"w": normal(32, 32)},
    ),
    Case(
        "attention of small heads",
        """g (float16[1,2,8,8] q, float16[1,2,8,8] k, float16[1,2,8,8] v) => (float16[1,2,8,8] y) {
            y = Attention(q, k, v) }""",
        "attention-kernel",
        BUILDER,
        node="y",
        opset=23,
    ),
    Case(
        "recurrence in single precision",
        "g (float[5,2,8] x) => (float[5,1,2,4] y) { y = LSTM<hidden_size = 4>(x, w, r) }",
        "float-product",
        BUILDER,
        node="y",
        targets=TURING,
        clean=("cpu", *RTX),
        weights={"w": normal(1, 16, 8), "r": normal(1, 16, 4)},
    ),
    Case(
        "deconvolution of volumes in single precision",
        "g (float[1,2,4,4,4] x) => (float[1,2,6,6,6] y) { y = ConvTranspose(x, w) }",
        "float-product",
        BUILDER,
        node="y",
        targets=TURING,
        clean=("cpu", *RTX),
        weights={"w": normal(2, 2, 3, 3, 3)},
    ),
    Case(
        "int4 by cast",
        "g (float[4] x) => (float[4] y) { d = Cast<to = 22>(x)  y = Cast<to = 1>(d) }",
        "tensor-type",
        BUILDER,
        node="d",
        opset=21,
    ),
    Case(
        "uint8 inside",
        "g (float[4] x) => (float[4] y) { d = Cast<to = 2>(x)  y = Cast<to = 1>(d) }",
        "tensor-type",
        node="d",
    ),
    Case(
        "int16 weight",
        "g (float[4] x) => (float[4] y) { d = Cast<to = 1>(w)  y = Add(x, d) }",
        "tensor-type",
        weights={"w": np.ones(4, np.int16)},
    ),
    Case(
        "half and single concatenated",
        "g (float16[4] x, float[4] z) => (float[8] y) { y = Concat<axis = 0>(x, z) }",
        "mixed-types",
        node="y",
    ),
    Case(
        "half and single clipped",
        "g (float16[4] x) => (float16[4] y) <float z = {0}> { y = Clip(x, z) }",
        "mixed-types",
        ACCEPTS,
        "warning",
        node="y",
    ),
    # forms
    Case(
        "scatter into positions with reduction",
        """g (float[4,8] x, int64[2,1] i, float[2,8] u) => (float[4,8] y) {
            y = ScatterND<reduction = "add">(x, i, u) }""",
        "operator-form",
        node="y",
    ),
    Case(
        "indices of pooling",
        """g (float[1,2,8,8] x) => (float[1,2,7,7] y, int64[1,2,7,7] i) {
            y, i = MaxPool<kernel_shape = [2, 2]>(x) }""",
        "operator-form",
        node="y",
    ),
    Case(
        "dilated pooling",
        "g (float[1,2,8,8] x) => (float[1,2,6,6] y) { y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x) }",
        "operator-form",
        node="y",
    ),
    Case(
        "mean of a layer norm",
        "g (float[4,8] x) => (float[4,8] y, float[4,1] m) { y, m = LayerNormalization(x, s) }",
        "operator-form",
        node="y",
        weights={"s": full(1, 8)},
    ),
    Case(
        "computed axes",
        "g (float[4,8] x, int64[1] a) => (float[n,m] y) { y = ReduceSum(x, a) }",
        "operator-form",
        node="y",
    ),
    Case(
        "float input as a size",
        """g (float[1,3,8,8] x, float[4] s) => (float[1,3,h,w] y) { y = Resize(x, "", s) }""",
        "operator-form",
        node="y",
    ),
    Case(
        "computed top k",
        "g (float[1,8000] x, int64[1] k) => (float[1,n] v, int64[1,n] i) { v, i = TopK(x, k) }",
        "shape-input",
        BUILDER,
        "note",
        node="v",
    ),
    Case(
        "computed shape",
        """g (float[4,8] x, int64[1] n) => (float[a,b] y) <int64[1] m = {-1}> {
            s = Concat<axis = 0>(n, m)  y = Reshape(x, s) }""",
        "shape-input",
        BUILDER,
        "note",
        node="y",
    ),
    Case(
        "vector times matrices",
        "g (float[4] x, float[3,4,5] w) => (float[3,5] y) { y = MatMul(x, w) }",
        "operator-form",
        node="y",
    ),
    Case("old opset", "g (float[4] x) => (float[4] y) { r = Relu(x)  y = Add(r, x) }", "opset", node="y", opset=6),
    # domains
    Case(
        "relu of another domain",
        "g (float[4,8] x) => (float[4,8] y) { y = com.microsoft.Relu(x) }",
        "operator-domain",
        ACCEPTS,
        "warning",
        node="y",
        imports=', "com.microsoft": 1',
    ),
)
"""What is found."""

MATMUL_INT8 = MATMUL.replace("AXIS", "1")
AS_IT_SHOULD_BE = (
    Case("int8 convolution", CONV, None, ACCEPTS, weights=conv()),
    Case(
        "int8 deconvolution",
        """g (float[1,16,8,8] x) => (float[1,32,8,8] y) {
            q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
            v = DequantizeLinear<axis = 1>(w, sw, zw)  y = ConvTranspose<kernel_shape = [1, 1]>(d, v) }""",
        None,
        ACCEPTS,
        weights=conv(w=integers(16, 32, 1, 1)),
    ),
    Case("int8 product", MATMUL_INT8, None, ACCEPTS, weights=MATMUL_WEIGHTS),
    Case(
        "int8 product, turned",
        MATMUL.replace("AXIS", "0").replace("MatMul", "Gemm<transB = 1>"),
        None,
        ACCEPTS,
        weights=MATMUL_WEIGHTS,
    ),
    Case(
        "int8 product with a transposed weight",
        """g (float[32,64] x) => (float[32,64] y) {
            q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
            v = DequantizeLinear<axis = 0>(w, sw, zw)  t = Transpose<perm = [1, 0]>(v)  y = MatMul(d, t) }""",
        None,
        ACCEPTS,
        weights=MATMUL_WEIGHTS,
    ),
    Case(
        "int8 input",
        "g (int8[4,8] x) => (float[4,8] y) <float s = {0.1}> { y = DequantizeLinear(x, s) }",
        None,
        ACCEPTS,
    ),
    Case("uint8 input that is cast", "g (uint8[4] x) => (float[4] y) { y = Cast<to = 1>(x) }", None, ACCEPTS),
    Case(
        "blocks of int4",
        """g (float16[32,64] x) => (float16[32,64] y) { v = DequantizeLinear<axis = 0, block_size = 32>(w, s)
            y = MatMul(x, v) }""",
        None,
        ACCEPTS,
        weights={"w": integers(64, 64).astype(ml_dtypes.int4), "s": full(0.1, 2, 64, dtype=np.float16)},
        opset=21,
    ),
    Case(
        "fp8",
        QDQ,
        None,
        ACCEPTS,
        targets=("rtx-ada", "rtx-blackwell"),
        weights=cast_weights(ml_dtypes.float8_e4m3fn),
        opset=21,
    ),
    Case(
        "fp8 with a zero point that is fed",
        """g (float[32,64] x, float8e4m3fn z) => (float[32,64] y) <float s = {0.1}> {
            q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }""",
        None,
        ACCEPTS,
        targets=("rtx-ada", "rtx-blackwell"),
        opset=21,
    ),
    Case(
        "half-precision attention",
        """g (float16[1,2,8,16] q, float16[1,2,8,16] k, float16[1,2,8,16] v) => (float16[1,2,8,16] y) {
            y = Attention(q, k, v) }""",
        None,
        ACCEPTS,
        opset=23,
    ),
    Case(
        "attention that is taken apart",
        """g (float[1,8,32] q, float[1,8,32] k, float[1,8,32] v) => (float[1,8,32] y) {
            y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }""",
        None,
        ACCEPTS,
        opset=23,
    ),
    Case(
        "as many of top k as there are",
        "g (float[1,8000] x) => (float[1,3840] v, int64[1,3840] i) <int64[1] k = {3840}> { v, i = TopK(x, k) }",
        None,
        ACCEPTS,
    ),
    Case(
        "loop with a condition",
        """g (float[4] x) => (float[4] y) <int64 n = {3}, bool t = {1}> {
            y = Loop (n, t, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] o) {
                d = Identity(c)  o = Add(a, a) }> }""",
        None,
        ACCEPTS,
    ),
    Case(
        "gelu of another domain",
        "g (float[4,8] x) => (float[4,8] y) { y = com.microsoft.Gelu(x) }",
        None,
        ACCEPTS,
        imports=', "com.microsoft": 1',
    ),
    Case(
        "convolution on Turing",
        "g (float[1,16,8,8] x) => (float[1,32,8,8] y) { y = Conv(x, w) }",
        None,
        ACCEPTS,
        targets=TURING,
        weights={"w": normal(32, 16, 1, 1)},
    ),
    Case(
        "half-precision product on Turing",
        "g (float16[4,16] x) => (float16[4,32] y) { y = MatMul(x, w) }",
        None,
        ACCEPTS,
        targets=TURING,
        weights={"w": normal(16, 32).astype(np.float16)},
    ),
    Case(
        "dynamic batch",
        "g (float[batch,16] x) => (float[batch,32] y) { y = MatMul(x, w) }",
        None,
        ACCEPTS,
        weights={"w": normal(16, 32)},
        shapes={"x": ((1, 16), (4, 16), (8, 16))},
    ),
)
"""What nothing is found in, and the builder takes."""
