"""Where the batch goes in a node that computes every sample by itself: what may be run on a longer batch.

A dimension of a value holds the batch as outer · batch · inner, the order in which Reshape sees it:

    [length, batch, 96] -> Reshape -> [length·batch, 96]     the batch is in axis 0, between `length` and 1

An operator may be run on a longer batch if no element of its result depends on elements of another sample. Each
function here says so for one kind of operator and returns where the batch is in the results, or None. Operators
without a function are taken to mix samples. Source: ONNX operator specification; where an operator changed its
meaning (Softmax before opset 13, axes as attributes) the older one is accepted as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgemm.rewrite import build, dims
from edgemm.rewrite.dims import ONE, Dim, product


@dataclass(frozen=True, slots=True)
class Place:
    """The batch of a value: the dimension at `axis` is outer · batch · inner."""

    axis: int
    outer: Dim = ONE
    inner: Dim = ONE


Places = tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A node with the places of the batch in its inputs.

    Attributes:
        node: The node.
        inputs: Per input, the place; None for one that is absent or the same for every sample.
        batch: The size of the batch.
        times: How many batches are to be put together.
        opset: Version of ONNX's own operators.
    """

    node: ir.Node
    inputs: tuple[Place | None, ...]
    batch: Dim
    times: int
    opset: int

    def only(self, *slots: int) -> bool:
        """Whether the inputs that hold the batch are exactly `slots`."""
        return {i for i, place in enumerate(self.inputs) if place is not None} == set(slots)

    def rank(self, slot: int) -> int | None:
        """Returns the number of dimensions of an input, or None."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        return len(value.shape) if value is not None and value.shape is not None else None

    def axes(self, slot: int) -> list[int] | None:
        """Returns `axes`, an attribute once and an input now, counted from the front; None without it."""
        found: Sequence[int] | None = self.node.attributes.get_ints("axes", None)
        if found is None:
            found = build.integers(self.node.inputs[slot]) if slot < len(self.node.inputs) else None
        return None if found is None else list(found)


def follow(step: Step) -> Places | None:
    """Returns the place of the batch in each result of the node, or None if it may not be run on a longer one."""
    rule = _RULES.get(step.node.op_type) if step.node.domain == "" else None
    return rule(step) if rule is not None else None


def knows(node: ir.Node) -> bool:
    """Whether `follow` may have an answer for `node`."""
    return node.domain == "" and node.op_type in _RULES


def sizes(value: ir.Value, place: Place, batch: Dim) -> list[Dim | None] | None:
    """Returns the dimensions of `value`, None for unknown ones, or None if not even their number is known."""
    if value.shape is None:
        return None
    result = [dims.read(d) for d in value.shape]
    result[place.axis] = place.outer * batch * place.inner
    return result


def longer(value: ir.Value, place: Place, batch: Dim, times: int) -> list[Dim | None] | None:
    """Returns the dimensions of `value` with a batch that is `times` as long."""
    return sizes(value, place, batch * Dim(times))


def joined_axis(step: Step, slot: int) -> int | None:
    """Returns the axis on which an input without the batch would be put together with its twins, or None."""
    value, op = step.node.inputs[slot], step.node.op_type
    known = next(((i, p) for i, p in enumerate(step.inputs) if p is not None), None)
    shape = dims.of(value)
    if known is None or shape is None or known[1] != Place(known[1].axis):
        return None
    rank = step.rank(known[0])
    if rank is None or op not in (*POINTWISE, "Concat", "MatMul"):
        return None
    axis = len(shape) - (rank - known[1].axis)
    return axis if axis >= 0 and shape[axis] == step.batch else None


def target(node: ir.Node, places: Sequence[Place], batch: Dim, times: int) -> list[int] | None:
    """Returns the shape with which a Reshape does the same to a longer batch, or None if no constant does.

    `places` are those of the batch in what it reads and in its result.
    """
    source, wanted = node.inputs[0], _reshaped(node, places[0], batch)
    before = longer(source, places[0], batch, times) if source is not None else None
    if before is None or wanted is None:
        return None
    after = list(wanted)
    after[places[1].axis] *= Dim(times)
    return None if None in before else dims.target([d for d in before if d is not None], after)


def _reshaped(node: ir.Node, place: Place, batch: Dim) -> tuple[Dim, ...] | None:
    """Returns the dimensions of what a Reshape or Flatten gives, or None."""
    numbers = build.integers(node.inputs[1]) if len(node.inputs) > 1 else None
    source = sizes(node.inputs[0], place, batch) if node.inputs[0] is not None else None
    known = [d for d in source or () if d is not None]
    if numbers is None or source is None or len(known) < len(source):
        return dims.of(node.outputs[0])
    return dims.reshaped(known, [Dim(n) for n in numbers], bool(node.attributes.get_int("allowzero", 0)))


# -- one function per kind of operator -------------------------------------------------------------------------


def _pointwise(step: Step) -> Places | None:
    """Element by element; what has no batch must not have a dimension in its place."""
    ranks = [step.rank(i) for i in range(len(step.inputs))]
    found = {
        (rank - place.axis, place.outer, place.inner)
        for rank, place in zip(ranks, step.inputs, strict=True)
        if rank is not None and place is not None
    }
    if len(found) != 1:
        return None
    (behind, outer, inner), highest = found.pop(), 0
    for value, rank, place in zip(step.node.inputs, ranks, step.inputs, strict=True):
        if value is None:
            continue
        if rank is None or value.shape is None:
            return None
        highest = max(highest, rank)
        if place is None and rank >= behind and value.shape[rank - behind] != 1:
            return None
    return (Place(highest - behind, outer, inner),)


def _first(step: Step) -> Places | None:
    """Axis 0 of the data is the batch, by definition of the operator."""
    place = step.inputs[0]
    if not step.only(0) or place is None or place.axis != 0:
        return None
    if step.node.op_type == "BatchNormalization" and step.node.attributes.get_int("training_mode", 0) != 0:
        return None
    return (place,) if len(step.node.outputs) == 1 else None


def _matmul(step: Step) -> Places | None:
    """Rows of the left side and matrices of either are independent."""
    left, right = step.inputs[:2]
    rows, columns = step.rank(0), step.rank(1)
    if rows is None or columns is None or min(rows, columns) < 2:
        return None
    if left is not None and right is not None:
        behind = rows - left.axis
        same = behind == columns - right.axis and (left.outer, left.inner) == (right.outer, right.inner)
        return (replace(left, axis=max(rows, columns) - behind),) if same and behind > 2 else None
    if left is not None:
        return (left,) if left.axis < rows - 1 and columns == 2 else None
    if right is not None:
        return (right,) if right.axis < columns - 2 and rows == 2 else None
    return None


def _gemm(step: Step) -> Places | None:
    """Rows of the left side are independent."""
    place, addend = step.inputs[0], step.node.inputs[2] if len(step.node.inputs) > 2 else None
    if not step.only(0) or place is None or place.axis != 0 or step.node.attributes.get_int("transA", 0) != 0:
        return None
    if addend is not None and (addend.shape is None or (len(addend.shape) > 1 and addend.shape[0] != 1)):
        return None
    return (place,)


def _along(step: Step) -> Places | None:
    """Works along one axis, or (LayerNormalization, Softmax of old) from one axis on."""
    place, rank = step.inputs[0], step.rank(0)
    if not step.only(0) or place is None or rank is None:
        return None
    op, old = step.node.op_type, step.opset < 13
    axis = step.node.attributes.get_int("axis", 1 if old and op in _SOFTMAX else -1)
    axis += rank if axis < 0 else 0
    onward = op in ("LayerNormalization", "RMSNormalization") or (old and op in _SOFTMAX)
    if place.axis == axis or (onward and place.axis > axis):
        return None
    return (place,) if len(step.node.outputs) == 1 else None


def _reduce(step: Step) -> Places | None:
    """Takes axes together, not that of the batch."""
    place, rank = step.inputs[0], step.rank(0)
    if not step.only(0) or place is None or rank is None:
        return None
    if step.node.op_type in ("ArgMax", "ArgMin"):
        found: list[int] | None = [step.node.attributes.get_int("axis", 0)]
    else:
        found = step.axes(1)
    if not found:
        return None
    axes = {a % rank for a in found}
    if place.axis in axes:
        return None
    gone = 0 if step.node.attributes.get_int("keepdims", 1) else sum(a < place.axis for a in axes)
    return (replace(place, axis=place.axis - gone),)


def _transpose(step: Step) -> Places | None:
    place, rank = step.inputs[0], step.rank(0)
    if place is None or rank is None:
        return None
    perm = step.node.attributes.get_ints("perm", range(rank)[::-1])
    return (replace(place, axis=list(perm).index(place.axis)),)


def _squeeze(step: Step) -> Places | None:
    """Takes dimensions of 1 away or puts them in; that of the batch stays."""
    place, rank, axes = step.inputs[0], step.rank(0), step.axes(1)
    if not step.only(0) or place is None or rank is None or axes is None:
        return None
    if step.node.op_type == "Unsqueeze":
        total = rank + len(axes)
        new = {a % total for a in axes}
        return (replace(place, axis=[i for i in range(total) if i not in new][place.axis]),)
    gone = {a % rank for a in axes}
    return None if place.axis in gone else (replace(place, axis=place.axis - sum(a < place.axis for a in gone)),)


def _reshape(step: Step) -> Places | None:
    """Keeps the order of the elements, so the batch has the same elements in front of it and behind it."""
    place, data = step.inputs[0], step.node.inputs[0]
    if not step.only(0) or place is None or data is None or data.shape is None:
        return None
    front = [dims.read(d) for d in data.shape[: place.axis]]
    wanted = _reshaped(step.node, place, step.batch)
    if None in front or wanted is None:
        return None
    ahead = product(d for d in front if d is not None) * place.outer
    found: list[Place] = []
    for axis, dim in enumerate(wanted):
        outer = ahead.over(product(wanted[:axis]))
        inner = dim.over(outer * step.batch) if outer is not None else None
        if outer is not None and inner is not None:
            found.append(Place(axis, outer, inner))
    alone = [p for p in found if p == Place(p.axis)]
    chosen = next(iter(alone or found), None)
    if chosen is None:
        return None
    if step.node.op_type == "Flatten":
        return (chosen,) if chosen.axis == 0 and place.axis < step.node.attributes.get_int("axis", 1) else None
    return (chosen,) if target(step.node, (place, chosen), step.batch, step.times) is not None else None


def _concat(step: Step) -> Places | None:
    """Puts together or (Split) takes apart along another axis."""
    place, rank = step.inputs[0], step.rank(0)
    if place is None or rank is None:
        return None
    if step.node.op_type == "Concat" and any(p != place for p in step.inputs):
        return None
    axis = step.node.attributes.get_int("axis", 0) % rank
    return None if axis == place.axis else (place,) * len(step.node.outputs)


def _slice(step: Step) -> Places | None:
    place, rank = step.inputs[0], step.rank(0)
    if not step.only(0) or place is None or rank is None:
        return None
    found = step.axes(3)
    starts = step.node.attributes.get_ints("starts", None)
    starts = starts if starts is not None else build.integers(step.node.inputs[1] if step.opset >= 10 else None)
    if found is None and starts is None:
        return None
    axes = {a % rank for a in (found if found is not None else range(len(starts or ())))}
    return None if place.axis in axes else (place,)


def _gather(step: Step) -> Places | None:
    """A table that is read by indices, or data of which the same places are read for every sample."""
    ranks = step.rank(0), step.rank(1)
    if ranks[0] is None or ranks[1] is None:
        return None
    axis = step.node.attributes.get_int("axis", 0) % ranks[0]
    data, indices = step.inputs[:2]
    if step.only(1) and indices is not None:
        return (replace(indices, axis=axis + indices.axis),)
    if not step.only(0) or data is None or data.axis == axis:
        return None
    return (replace(data, axis=data.axis + (ranks[1] - 1 if data.axis > axis else 0)),)


def _pad(step: Step) -> Places | None:
    place, rank = step.inputs[0], step.rank(0)
    pads: Sequence[int] | None = step.node.attributes.get_ints("pads", None)
    if pads is None:
        pads = build.integers(step.node.inputs[1]) if len(step.node.inputs) > 1 else None
    if not step.only(0) or place is None or rank is None or pads is None or len(pads) != 2 * rank:
        return None
    chosen = len(step.node.inputs) > 3 and step.node.inputs[3] is not None
    return None if chosen or pads[place.axis] or pads[place.axis + rank] else (place,)


def _expand(step: Step) -> Places | None:
    """To a constant shape that leaves the batch alone."""
    place, rank = step.inputs[0], step.rank(0)
    wanted = build.integers(step.node.inputs[1])
    if not step.only(0) or place is None or rank is None or wanted is None:
        return None
    behind = rank - place.axis
    if len(wanted) >= behind and wanted[len(wanted) - behind] != 1:
        return None
    return (replace(place, axis=max(rank, len(wanted)) - behind),)


def _quantize(step: Step) -> Places | None:
    """One scale for everything, or one per index of an axis that is not the batch."""
    place, rank, scale = step.inputs[0], step.rank(0), step.node.inputs[1]
    if not step.only(0) or place is None or rank is None or scale is None or scale.shape is None:
        return None
    if len(scale.shape) > 1 or step.node.attributes.get_int("block_size", 0) != 0:
        return None
    per_axis = len(scale.shape) == 1 and scale.shape[0] != 1
    return None if per_axis and step.node.attributes.get_int("axis", 1) % rank == place.axis else (place,)


def _recurrent(step: Step) -> Places | None:
    """[length, batch, size], with states of [directions, batch, size]; weights are the same for every sample."""
    place = step.inputs[0]
    states = {i for i, v in enumerate(step.node.inputs) if i in (5, 6) and v is not None}
    if place != Place(1) or step.node.attributes.get_int("layout", 0) != 0 or not step.only(0, *states):
        return None
    if any(step.inputs[i] != Place(1) for i in states) or (len(step.node.inputs) > 4 and step.node.inputs[4]):
        return None
    return (Place(2), Place(1), Place(1))[: len(step.node.outputs)]


_SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax"})

_POINTWISE = """
Abs Add And Cast Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round
Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Tanh ThresholdedRelu Where Xor
"""
POINTWISE = frozenset(_POINTWISE.split())
"""Operators of which each element of the result needs one element of each input."""

_BATCH_FIRST = """
Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool BatchNormalization
InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth
"""
_REDUCTIONS = """
ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp
ArgMax ArgMin
"""

_Rule = Callable[[Step], Places | None]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(_BATCH_FIRST.split(), _first),
    "MatMul": _matmul,
    "Gemm": _gemm,
    **dict.fromkeys((*_SOFTMAX, "LayerNormalization", "RMSNormalization", "LpNormalization"), _along),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Concat": _concat,
    "Split": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": _expand,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
}
