"""Shape arithmetic with a known result is constant: Reshape(x, Concat(Shape(x)[0], 12, 8)) -> Reshape(x, c).

Values that hold dimensions are followed through Shape, Gather, Slice, Concat, Squeeze, Unsqueeze, Reshape, Cast,
Mul, Div, Add, Sub and ReduceProd as products of sizes and symbols. A result without symbols becomes a constant.
The shape of a Reshape becomes a constant where its open dimensions can be copied (0) or left to it (−1). An
Expand or Tile to the shape that its input has goes. Shapes of results are written down for the rules that follow.
No dynamic dimension is ever fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, dims
from edgemm.rewrite.dims import ONE, Dim, product
from edgemm.tensors import IOSpec

Known = tuple[Dim | None, ...]

_LONGEST = 64


def apply(model: ir.Model, io: IOSpec) -> int:
    """Folds shapes of the main graph; returns how many nodes were replaced or made constant."""
    folder = _Folder(model.graph)
    return sum(folder.visit(node) for node in list(model.graph))


class _Folder:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[ir.Value, Known] = {}

    def values(self, value: ir.Value | None) -> Known | None:
        """Returns the integers in `value`, as far as known, or None if it does not hold few integers."""
        if value is None:
            return None
        if value in self.known:
            return self.known[value]
        found = build.array(value)
        if found is None or found.dtype.kind not in "iu" or found.ndim > 1 or found.size > _LONGEST:
            return None
        self.known[value] = tuple(Dim(int(i)) for i in found.reshape(-1))
        return self.known[value]

    def visit(self, node: ir.Node) -> int:
        if node.domain != "" or node.graph is not self.graph or not node.outputs:
            return 0
        rule = _RULES.get(node.op_type)
        if rule is not None:
            found = rule(self, node)
            if found is not None:
                output = node.outputs[0]
                self.known[output] = found
                return self._freeze(node, found)
            return 0
        if node.op_type == "Reshape":
            return self._reshape(node)
        if node.op_type in ("Expand", "Tile"):
            return self._expand(node)
        if node.op_type == "Transpose":
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            if shape is not None:
                perm = node.attributes.get_ints("perm", None) or range(len(shape))[::-1]
                node.outputs[0].shape = ir.Shape([shape[i] for i in perm])
        return 0

    def _freeze(self, node: ir.Node, known: Known) -> int:
        output = node.outputs[0]
        numbers = [d.fixed for d in known if d is not None]
        if output.is_graph_output() or len(numbers) < len(known) or any(n is None for n in numbers):
            return 0
        if output.dtype is None or output.shape is None or len(output.shape) > 1:
            return 0
        data = np.array(numbers, output.dtype.numpy()).reshape(() if len(output.shape) == 0 else (-1,))
        constant = build.Builder(node).constant(data)
        ir.convenience.replace_all_uses_with(output, constant)
        build.remove_dead(self.graph, node)
        return 1

    def _reshape(self, node: ir.Node) -> int:
        source, wanted, output = node.inputs[0], self.values(node.inputs[1]), node.outputs[0]
        shape = dims.of(source)
        if source is None or shape is None or wanted is None:
            return self._hold(node, wanted)
        allow_zero = node.attributes.get_int("allowzero", 0)
        result = dims.reshaped(shape, wanted, bool(allow_zero))
        if result is None:
            return self._hold(node, wanted)
        if not output.is_graph_output():
            output.shape = dims.shape(result)
        held = self.values(source)
        if held is not None and len(result) <= 1:
            self.known[output] = held
        if build.array(node.inputs[1]) is not None:
            return 0
        numbers = dims.target(shape, result)
        if numbers is None:
            return 0
        old = node.inputs[1]
        node.replace_input_with(1, build.Builder(node).integers(numbers))
        node.attributes.pop("allowzero", None)
        build.remove_dead(self.graph, old.producer() if old is not None else None)
        return 1

    def _hold(self, node: ir.Node, wanted: Known | None) -> int:
        held = self.values(node.inputs[0])
        if held is not None and wanted is not None and len(wanted) <= 1:
            self.known[node.outputs[0]] = held
        return 0

    def _expand(self, node: ir.Node) -> int:
        source, wanted, output = node.inputs[0], self.values(node.inputs[1]), node.outputs[0]
        shape = dims.of(source)
        if source is None or shape is None or wanted is None:
            return 0
        result = _tiled(shape, wanted) if node.op_type == "Tile" else _broadcast(shape, wanted)
        if result is None:
            return 0
        if not output.is_graph_output():
            output.shape = dims.shape(result)
        if result != shape or output.is_graph_output():
            return 0
        ir.convenience.replace_all_uses_with(output, source)
        build.remove_dead(self.graph, node)
        return 1


def _broadcast(shape: tuple[Dim, ...], wanted: Known) -> tuple[Dim, ...] | None:
    rank = max(len(shape), len(wanted))
    ours = (ONE,) * (rank - len(shape)) + shape
    theirs: Known = (ONE,) * (rank - len(wanted)) + wanted
    result = []
    for a, b in zip(ours, theirs, strict=True):
        if b is None or (a != b and ONE not in (a, b)):
            return None
        result.append(b if a == ONE else a)
    return tuple(result)


def _tiled(shape: tuple[Dim, ...], wanted: Known) -> tuple[Dim, ...] | None:
    if len(wanted) != len(shape) or None in wanted:
        return None
    return tuple(a * b for a, b in zip(shape, wanted, strict=True) if b is not None)


def _shape(folder: _Folder, node: ir.Node) -> Known | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    rank = len(value.shape)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return tuple(dims.read(d) for d in value.shape)[start:end]


def _gather(folder: _Folder, node: ir.Node) -> Known | None:
    data, picked = folder.values(node.inputs[0]), build.integers(node.inputs[1])
    if data is None or picked is None or any(not -len(data) <= i < len(data) for i in picked):
        return None
    index = build.array(node.inputs[1])
    return tuple(data[i] for i in picked) if index is not None and index.ndim <= 1 else None


def _slice(folder: _Folder, node: ir.Node) -> Known | None:
    data = folder.values(node.inputs[0])
    parts = [build.integers(v) for v in node.inputs[1:]]
    if data is None or not 2 <= len(parts) <= 4 or any(p is None or len(p) != 1 for p in parts):
        return None
    start, end, axis, by = [p[0] for p in parts if p is not None] + [0, 1][len(parts) - 2 :]
    return data[start:end:by] if axis in (0, -1) and by > 0 else None


def _concat(folder: _Folder, node: ir.Node) -> Known | None:
    parts = [folder.values(v) for v in node.inputs]
    return None if any(p is None for p in parts) else tuple(d for p in parts if p is not None for d in p)


def _same(folder: _Folder, node: ir.Node) -> Known | None:
    found = folder.values(node.inputs[0])
    output = node.outputs[0]
    if found is None or output.shape is None or len(output.shape) > 1:
        return None
    return found if output.dtype in (ir.DataType.INT64, ir.DataType.INT32) else None


def _pairwise(act: Callable[[Dim, Dim], Dim | None]) -> Callable[[_Folder, ir.Node], Known | None]:
    def apply_pairwise(folder: _Folder, node: ir.Node) -> Known | None:
        a, b = folder.values(node.inputs[0]), folder.values(node.inputs[1])
        if a is None or b is None or not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
            return None
        length = max(len(a), len(b))
        a, b = a * (length // len(a)), b * (length // len(b))
        return tuple(None if x is None or y is None else act(x, y) for x, y in zip(a, b, strict=True))

    return apply_pairwise


def _sum(sign: int) -> Callable[[Dim, Dim], Dim | None]:
    def add(a: Dim, b: Dim) -> Dim | None:
        if a.symbols == b.symbols == ():
            return Dim(a.size + sign * b.size)
        return a if b.fixed == 0 else b if a.fixed == 0 and sign > 0 else None

    return add


def _quotient(a: Dim, b: Dim) -> Dim | None:
    if a.fixed is not None and b.fixed is not None:
        return Dim(a.size // b.size) if a.size >= 0 and b.size > 0 else None
    return a.over(b)


def _times(a: Dim, b: Dim) -> Dim | None:
    return Dim(0) if Dim(0) in (a, b) else a * b


def _reduce(folder: _Folder, node: ir.Node) -> Known | None:
    found = folder.values(node.inputs[0])
    known: Sequence[Dim] = [d for d in found or () if d is not None]
    return None if found is None or len(known) < len(found) else (product(known),)


_RULES: dict[str, Callable[[_Folder, ir.Node], Known | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Cast": _same,
    "Identity": _same,
    "Mul": _pairwise(_times),
    "Div": _pairwise(_quotient),
    "Add": _pairwise(_sum(1)),
    "Sub": _pairwise(_sum(-1)),
    "ReduceProd": _reduce,
}
