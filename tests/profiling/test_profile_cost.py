"""Operations and bytes of a node, against values worked out by hand."""

from __future__ import annotations

import pytest

from edgemm.profiling.cost import flops, is_integer, moved
from edgemm.profiling.onnx_nodes import Tensor

MICROSOFT = "com.microsoft"


def t(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(dtype, shape)


NONE = None
CASES = {
    # 64 positions, 4 channels, 3 x 3 x 3 products each
    "conv": ("Conv", {}, [t(1, 3, 8, 8), t(4, 3, 3, 3)], [t(1, 4, 8, 8)], 2 * 64 * 4 * 27),
    "depthwise": ("Conv", {"group": 8}, [t(2, 8, 5, 5), t(8, 1, 3, 3)], [t(2, 8, 5, 5)], 2 * 2 * 25 * 8 * 9),
    "conv 1d": ("Conv", {}, [t(1, 24, 32), t(32, 24, 3)], [t(1, 32, 30)], 2 * 30 * 32 * 24 * 3),
    "conv transpose": ("ConvTranspose", {}, [t(1, 4, 5, 5), t(4, 2, 3, 3)], [t(1, 2, 11, 11)], 2 * 25 * 4 * 2 * 9),
    "nhwc": ("NhwcFusedConv", {}, [t(1, 8, 8, 3), t(4, 3, 3, 3)], [t(1, 8, 8, 4)], 2 * 64 * 4 * 27),
    "qlinear conv": (
        "QLinearConv",
        {"channels_last": 1},
        [t(1, 8, 8, 3, dtype="uint8"), t(), t(), t(4, 3, 3, 3, dtype="int8"), t(4), t(4)],
        [t(1, 8, 8, 4, dtype="uint8")],
        2 * 64 * 4 * 27,
    ),
    "matmul": ("MatMul", {}, [t(2, 5, 7), t(7, 3)], [t(2, 5, 3)], 2 * 2 * 5 * 7 * 3),
    "batched matmul": ("MatMul", {}, [t(2, 4, 5, 7), t(2, 4, 7, 6)], [t(2, 4, 5, 6)], 2 * 2 * 4 * 5 * 7 * 6),
    "vector": ("MatMul", {}, [t(7), t(7, 3)], [t(3)], 2 * 7 * 3),
    "transposed": ("FusedMatMul", {"transA": 1}, [t(7, 5), t(7, 3)], [t(5, 3)], 2 * 7 * 5 * 3),
    "gemm": ("Gemm", {"transB": 1}, [t(5, 7), t(3, 7), t(3)], [t(5, 3)], 2 * 5 * 7 * 3),
    "gemm transA": ("Gemm", {"transA": 1}, [t(7, 5), t(7, 3)], [t(5, 3)], 2 * 5 * 7 * 3),
    "integer": ("MatMulIntegerToFloat", {}, [t(5, 7, dtype="uint8"), t(7, 3, dtype="int8")], [t(5, 3)], 210),
    "four bits": (
        "MatMulNBits",
        {"K": 64, "N": 3},
        [t(5, 64), t(3, 2, 16, dtype="uint8")],
        [t(5, 3)],
        2 * 5 * 64 * 3,
    ),
    # 5 steps of 2 samples; 4 gates of 4 units read 3 inputs and 4 states
    "lstm": ("LSTM", {}, [t(5, 2, 3), t(1, 16, 3), t(1, 16, 4)], [t(5, 1, 2, 4)], 2 * 5 * 2 * (16 * 3 + 16 * 4)),
    "gru both ways": (
        "GRU",
        {},
        [t(5, 2, 3), t(2, 12, 3), t(2, 12, 4)],
        [t(5, 2, 2, 4)],
        2 * 5 * 2 * 2 * (12 * 3 + 12 * 4),
    ),
    "einsum": (
        "Einsum",
        {"equation": "bij, bjk -> bik"},
        [t(2, 3, 4), t(2, 4, 5)],
        [t(2, 3, 5)],
        2 * 2 * 3 * 4 * 5,
    ),
    # 2 heads of 4 over 6 queries and 9 keys: scores and weighted values
    "attention": (
        "Attention",
        {},
        [t(3, 2, 6, 4), t(3, 2, 9, 4), t(3, 2, 9, 4)],
        [t(3, 2, 6, 4)],
        2 * (2 * 3 * 2 * 6 * 9 * 4),
    ),
    "attention with past": (
        "Attention",
        {},
        [t(1, 1, 8), t(1, 1, 8), t(1, 1, 8), NONE, t(1, 2, 9, 4), t(1, 2, 9, 4)],
        [t(1, 1, 8)],
        2 * (2 * 10 * 8),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_by_hand(case: str) -> None:
    op, attributes, inputs, outputs, expected = CASES[case]
    assert flops(op, attributes, inputs, outputs) == expected


def test_attention_of_onnx_runtime_makes_its_own_projections() -> None:
    rows, hidden, length = 3 * 6, 8, 6
    expected = 2 * rows * hidden * 24 + 2 * (2 * rows * length * hidden)
    given = [t(3, 6, 8), t(8, 24), t(24)]
    assert flops("Attention", {}, given, [t(3, 6, 8)], domain=MICROSOFT) == expected


@pytest.mark.parametrize(
    "inputs",
    [
        [t(3, 6, 8), t(3, 9, 8), t(3, 9, 8)],
        [t(3, 6, 8), t(3, 2, 9, 4), t(3, 2, 9, 4)],
        [t(3, 6, 8), t(3, 9, 2, 2, 4)],
        [t(3, 6, 8), t(3, 4, 8), t(3, 4, 8), NONE, NONE, NONE, t(3, 2, 5, 4), t(3, 2, 5, 4)],
    ],
)
def test_multi_head_attention_in_every_layout(inputs: list[Tensor | None]) -> None:
    assert flops("MultiHeadAttention", {}, inputs, [t(3, 6, 8)], domain=MICROSOFT) == 2 * (2 * 3 * 6 * 9 * 8)


def test_packed_attention_counts_a_third_as_queries() -> None:
    packed = flops("MultiHeadAttention", {}, [t(3, 6, 2, 3, 4)], [t(3, 6, 8)], domain=MICROSOFT)
    assert packed == 2 * (2 * 3 * 6 * 6 * 8)


def test_blocks_of_channels_are_not_counted() -> None:
    """16 of 3 channels in, 16 of 4 out: what a kernel fills up is no work of the model."""
    padded = [t(1, 3, 8, 8), t(16, 3, 3, 3)]
    assert flops("Conv", {}, padded, [t(1, 16, 8, 8)], weight=t(4, 3, 3, 3)) == 2 * 64 * 4 * 27
    assert flops("Conv", {}, padded, [t(1, 16, 8, 8)]) == 2 * 64 * 16 * 27


@pytest.mark.parametrize("op", ["Relu", "Add", "Softmax", "Concat", "NoSuchOperator"])
def test_what_is_not_counted_is_none(op: str) -> None:
    assert flops(op, {}, [t(2, 3), t(2, 3)], [t(2, 3)]) is None


@pytest.mark.parametrize(
    ("inputs", "outputs"), [([], []), ([NONE, t(2, 2)], [t(2, 2)]), ([t(2, 2), t(2, 2)], [NONE])]
)
def test_unknown_sizes_are_none(inputs: list[Tensor | None], outputs: list[Tensor | None]) -> None:
    assert flops("MatMul", {}, inputs, outputs) is None


def test_bytes() -> None:
    assert moved("Add", [t(2, 3), t(3)], [t(2, 3)]) == 4 * (6 + 3 + 6)
    assert moved("MatMul", [t(5, 7, dtype="uint8"), t(7, 3, dtype="int8")], [t(5, 3)]) == 35 + 21 + 60
    assert moved("Reshape", [t(2, 3), t(1, dtype="int64")], [t(6)]) == 0
    assert moved("Gather", [t(30_000, 64), t(1, 5, dtype="int64")], [t(1, 5, 64)]) == 2 * 4 * 5 * 64 + 5 * 8
    assert (
        moved("MatMul", [t(4, 4, dtype="int4"), t(4, 4, dtype="float16")], [t(4, 4, dtype="bfloat16")])
        == 8 + 32 + 32
    )
    assert moved("Relu", [t(2)], [NONE]) is None


def test_integers() -> None:
    integers = [t(5, 7, dtype="uint8"), t(7, 3, dtype="int8")]
    assert is_integer("MatMulInteger", integers)
    assert not is_integer("MatMul", [t(5, 7), t(7, 3)])
    assert not is_integer("MatMul", [t(5, 7), t(7, 3, dtype="int8")])
    assert not is_integer("Gather", integers)
    assert not is_integer("MatMulNBits", integers)
