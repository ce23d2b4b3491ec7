"""What a node has to do: floating-point operations and bytes, from the shapes of what it reads and gives.

A multiplication with its addition is two operations, whatever the arithmetic (int8 too); biases, activations and
scales are not counted: the convention of `torch.utils.flop_counter`. Counted are MatMul, Gemm, Conv, LSTM, GRU,
RNN, Einsum and attention, their quantized forms, and what ONNX Runtime fuses them into (operators of
`com.microsoft`, ONNX Runtime, docs/ContribOperators.md). Bytes are those of every input and output once: the least
that must move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from edgemm.profiling.onnx_nodes import Tensor

Tensors = Sequence[Tensor | None]
Attributes = Mapping[str, int | str]

INTEGERS = ("int8", "uint8", "int4", "uint4", "i8", "u8", "i4", "u4")
"""Dtypes whose products are summed in int32."""


def flops(
    op: str,
    attributes: Attributes,
    inputs: Tensors,
    outputs: Tensors,
    *,
    domain: str = "",
    weight: Tensor | None = None,
) -> int | None:
    """Returns the operations of one call, or None for an operator that is not counted or of unknown sizes.

    Args:
        op: Type of the operator, as ONNX or ONNX Runtime names it.
        attributes: Of the node.
        inputs: In the node's order; None for one that is left out or unknown.
        outputs: Likewise.
        domain: Of the operator; tells ONNX's Attention from ONNX Runtime's.
        weight: Of a convolution, where `inputs` has it in another layout, filled up to whole blocks.
    """
    formula = _FORMULAS.get("onnx.Attention" if (op, domain) == ("Attention", "") else op)
    if formula is None:
        return None
    if weight is not None and op in _CONVOLUTIONS:
        place = _CONVOLUTIONS[op]
        inputs = [*inputs[:place], weight, *inputs[place + 1 :]]
    try:
        return formula(op, attributes, _Given(inputs), _Given(outputs))
    except (_UnknownError, IndexError, ZeroDivisionError, ValueError):
        return None


def moved(op: str, inputs: Tensors, outputs: Tensors) -> int | None:
    """Returns the bytes that one call has to read and write at least, or None if sizes are unknown.

    An operator that only gives a tensor another shape moves nothing; one that picks a part reads what it gives.
    """
    if op in _VIEWS:
        return 0
    if any(t is None for t in outputs):
        return None
    given = sum(t.nbytes for t in outputs if t is not None)
    if op in _PICKING:
        return 2 * given + sum(t.nbytes for t in inputs[1:] if t is not None)
    if not outputs or all(t is None for t in inputs):
        return None
    return given + sum(t.nbytes for t in inputs if t is not None)


def is_integer(op: str, inputs: Tensors) -> bool:
    """Returns whether an operator multiplies integers: its data and its weight are integers."""
    if op in ("MatMulNBits", "MatMulBnb4"):
        return False
    if op in ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"):
        return True
    place = _CONVOLUTIONS.get(op, _PRODUCTS.get(op))
    if place is None or place >= len(inputs):
        return False
    data = (inputs[0], inputs[place])
    return all(t is not None and t.dtype in INTEGERS for t in data)


_VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size"])
_PICKING = frozenset(
    [
        "Gather",
        "GatherElements",
        "GatherND",
        "Slice",
        "Split",
        "EmbedLayerNormalization",
        "QEmbedLayerNormalization",
    ]
)

_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "NhwcConv": 1, "ConvInteger": 1, "DeformConv": 1}
_CONVOLUTIONS |= {"QLinearConv": 3, "ConvTranspose": 1, "ConvTransposeWithDynamicPads": 1}
"""Operator -> which input is the weight."""

_PRODUCTS = {"MatMul": 1, "FusedMatMul": 1, "FusedMatMulActivation": 1, "MatMulInteger": 1, "MatMulInteger16": 1}
_PRODUCTS |= {"MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QLinearMatMul": 3}
_PRODUCTS |= {"Gemm": 1, "FusedGemm": 1, "QGemm": 3, "MatMulNBits": 1, "MatMulBnb4": 1}
"""Operator -> which input is the right factor."""


class _UnknownError(Exception):
    """A tensor whose shape is needed is not known."""


class _Given:
    """The tensors of a node; asking for one that is not known ends the formula."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, index: int) -> Tensor:
        found = self.get(index)
        if found is None:
            raise _UnknownError
        return found

    def get(self, index: int) -> Tensor | None:
        """Returns the tensor, or None for one that is left out."""
        return self._tensors[index] if index < len(self._tensors) else None


_Formula = Callable[[str, Attributes, _Given, _Given], int]


def _convolution(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """Every position of the output takes one product with each element of the weight (M, C/group, k...)."""
    return 2 * _positions(op, attributes, outputs[0]) * inputs[_CONVOLUTIONS[op]].size


def _transposed(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """Every position of the input is multiplied by each element of the weight (C, M/group, k...)."""
    return 2 * _positions(op, attributes, inputs[0]) * inputs[1].size


def _positions(op: str, attributes: Attributes, tensor: Tensor) -> int:
    last = op.startswith("Nhwc") or attributes.get("channels_last") == 1
    return tensor.size // tensor.shape[-1 if last else 1]


def _product(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    left = inputs[0].shape
    return 2 * outputs[0].size * left[-2 if attributes.get("transA") == 1 and len(left) > 1 else -1]


def _recurrent(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """Every step multiplies by the weights of the input and of the state, in each direction."""
    steps, batch = inputs[0].shape[:2]
    return 2 * steps * batch * (inputs[1].size + inputs[2].size)


def _einsum(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    terms = str(attributes["equation"]).replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "..." in "".join(terms):
        raise _UnknownError
    sizes = {
        letter: size for at, term in enumerate(terms) for letter, size in zip(term, inputs[at].shape, strict=True)
    }
    return 2 * prod(sizes.values())


def _attention(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """ONNX's operator: q, k, v in (batch, length, hidden) or (batch, heads, length, size); past keys at 4."""
    past = inputs.get(4)
    length = _length(inputs[1]) + (past.shape[2] if past is not None else 0)
    return _scores(inputs[0].size, outputs[0].size, length)


def _projected_attention(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """ONNX Runtime's Attention and QAttention: one weight (hidden, q + k + v) makes all three."""
    batch, length, _ = inputs[0].shape
    rows, columns, value = batch * length, inputs[1].shape[-1], outputs[0].shape[-1]
    past = inputs.get(4 if op == "Attention" else 8)
    all_keys = length + (past.shape[3] if past is not None else 0)
    return 2 * rows * inputs[1].size + _scores(rows * (columns - value) // 2, outputs[0].size, all_keys)


def _multi_head_attention(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """Query (batch, length, hidden), or packed (batch, length, heads, 3, size); past keys at 6."""
    query, key, past = inputs[0], inputs.get(1), inputs.get(6)
    packed = len(query.shape) == 5
    length = query.shape[1] if key is None else _length(key)
    if past is not None and (key is None or len(key.shape) == 3):
        length += past.shape[2]
    return _scores(query.size // (3 if packed else 1), outputs[0].size, length)


def _grouped_attention(op: str, attributes: Attributes, inputs: _Given, outputs: _Given) -> int:
    """GroupQueryAttention: the keys of all steps so far are its second output (batch, heads, length, size)."""
    return _scores(outputs[0].size, outputs[0].size, outputs[1].shape[2])


def _length(key: Tensor) -> int:
    """Returns the number of keys: (batch, length, hidden), (batch, heads, length, size), or packed with values."""
    return key.shape[2] if len(key.shape) == 4 else key.shape[1]


def _scores(query: int, output: int, keys: int) -> int:
    """Each element of the queries meets every key, each element of the result every value."""
    return 2 * keys * (query + output)


_FORMULAS: dict[str, _Formula] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _transposed),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "Einsum": _einsum,
    "onnx.Attention": _attention,
    **dict.fromkeys(("Attention", "QAttention"), _projected_attention),
    "MultiHeadAttention": _multi_head_attention,
    "DecoderMaskedMultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_attention,
}
