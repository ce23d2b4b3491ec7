"""What a chain of Reshape, Transpose, Squeeze, Unsqueeze and Flatten does, as one permutation of factors.

Every such chain cuts the dimensions of its source into factors, puts them in another order and multiplies
neighbours together again:

    [49, batch, 96] -> [49, 4·batch, 24] -> [4·batch, 49, 24] -> [batch, 4, 49, 24]
    factors 49 | batch | 4 · 24, in the order batch | 4 | 49 | 24

So a chain of any length is at most Reshape, Transpose, Reshape, and two chains are equal if their factors are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgemm.rewrite import dims
from edgemm.rewrite.build import Builder, integers
from edgemm.rewrite.dims import Dim, product

OPSET = 5
"""From here on Reshape takes its shape as an input."""

OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})

COSTS = {"Transpose": 2, "Reshape": 1}

Factor = tuple[int, ...]
"""Where a factor stands in the source: (axis, part, part of the part, ...), so that sorting gives its order."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A value as the rearranged `source`.

    Attributes:
        source: The value at the top of the chain.
        dims: Its dimensions.
        sizes: Of each factor.
        groups: Of each dimension of the value, the factors that it is the product of. None for a dimension of 1.
    """

    source: ir.Value
    dims: tuple[Dim, ...]
    sizes: dict[Factor, Dim]
    groups: tuple[tuple[Factor, ...], ...]

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dimensions of the value."""
        return tuple(product(self.sizes[f] for f in g) for g in self.groups)

    @property
    def flat(self) -> tuple[Factor, ...]:
        """All factors in the value's order."""
        return tuple(f for g in self.groups for f in g)


def start(value: ir.Value) -> Layout | None:
    """Returns `value` as it is, or None unless its dimensions are known."""
    shape = dims.of(value)
    if shape is None or any(d.fixed == 0 for d in shape):
        return None
    sizes: dict[Factor, Dim] = {(i,): d for i, d in enumerate(shape) if d != dims.ONE}
    return Layout(value, shape, sizes, tuple(((i,),) if (i,) in sizes else () for i in range(len(shape))))


def step(layout: Layout, node: ir.Node) -> Layout | None:
    """Returns the layout behind `node`, which reads the value of `layout`, or None if it cannot be told."""
    if node.op_type == "Transpose":
        rank = len(layout.groups)
        perm = node.attributes.get_ints("perm", None) or range(rank)[::-1]
        return Layout(layout.source, layout.dims, layout.sizes, tuple(layout.groups[i] for i in perm))
    if node.op_type == "Flatten":
        rank = len(layout.groups)
        axis = node.attributes.get_int("axis", 1)
        axis += rank if axis < 0 else 0
        return arrange(layout, range(axis), range(axis, rank))
    wanted = dims.of(node.outputs[0])
    if node.op_type == "Reshape" and len(node.inputs) > 1 and (numbers := integers(node.inputs[1])) is not None:
        zeros = bool(node.attributes.get_int("allowzero", 0))
        wanted = dims.reshaped(layout.shape, [Dim(n) for n in numbers], zeros)
    return None if wanted is None else regroup(layout, wanted)


def regroup(layout: Layout, wanted: Sequence[Dim]) -> Layout | None:
    """Returns `layout` with its factors, in their order, multiplied to `wanted`; None if no cut of them does."""
    sizes = dict(layout.sizes)
    rest = list(layout.flat)
    groups: list[tuple[Factor, ...]] = []
    for dim in wanted:
        group: list[Factor] = []
        left = dim
        while left != dims.ONE:
            if not rest:
                return None
            factor = rest.pop(0)
            size = sizes[factor]
            smaller = left.over(size)
            if smaller is None:
                second = size.over(left)
                if second is None:
                    return None
                del sizes[factor]
                sizes[(*factor, 0)], sizes[(*factor, 1)] = left, second
                groups = [tuple(g for f in old for g in _cut(f, factor)) for old in groups]
                rest.insert(0, (*factor, 1))
                factor, smaller = (*factor, 0), dims.ONE
            group.append(factor)
            left = smaller
        groups.append(tuple(group))
    return None if rest else Layout(layout.source, layout.dims, sizes, tuple(groups))


def _cut(factor: Factor, cut: Factor) -> tuple[Factor, ...]:
    return ((*factor, 0), (*factor, 1)) if factor == cut else (factor,)


def arrange(layout: Layout, *groups: Sequence[int]) -> Layout:
    """Returns the layout whose dimension i is the product of the dimensions `groups[i]` of `layout`."""
    joined = tuple(tuple(f for i in g for f in layout.groups[i]) for g in groups)
    return Layout(layout.source, layout.dims, layout.sizes, joined)


Step = tuple[str, tuple[Dim, ...], tuple[int, ...]]
"""Reshape to these dimensions, or Transpose to these by this permutation."""


def steps(layout: Layout) -> list[Step] | None:
    """Returns the shortest way from the source to the value, or None if a Reshape needs more than a constant."""
    ways = [way for way in (_by_source(layout), _by_result(layout), _by_blocks(layout)) if way is not None]
    ways = [way for way in ways if _constant(layout.dims, way)]
    return min(ways, key=len) if ways else None


def cost(way: Sequence[Step]) -> int:
    """Returns what `way` costs: a Transpose copies, a Reshape is a node and little more."""
    return sum(COSTS.get(op, COSTS["Reshape"]) for op, _, _ in way)


def emit(layout: Layout, builder: Builder) -> ir.Value:
    """Returns the value that `layout` describes, made by as few nodes as possible.

    Only for layouts that `steps` has an answer for.
    """
    value, at = layout.source, layout.dims
    for op, shape, perm in steps(layout) or []:
        if op == "Reshape":
            value = builder.reshape(value, at, shape)
        else:
            value = builder.node("Transpose", [value], {"perm": perm}, like=value, shape=shape)
        at = shape
    return value


def _constant(at: tuple[Dim, ...], way: list[Step]) -> bool:
    for op, shape, _ in way:
        if op == "Reshape" and dims.target(at, shape) is None:
            return False
        at = shape
    return True


def _way(source: tuple[Dim, ...], first: list[tuple[Factor, ...]], layout: Layout) -> list[Step] | None:
    """Returns Reshape to the groups `first` (in source order), Transpose, Reshape, without what does nothing."""
    middle = tuple(product(layout.sizes[f] for f in g) for g in first)
    place = {f: i for i, f in enumerate(layout.flat)}
    real = sorted((i for i, g in enumerate(first) if g), key=lambda i: place[first[i][0]])
    if tuple(f for i in real for f in first[i]) != layout.flat:
        return None
    perm = _with_units(first, real, layout.shape)
    way: list[Step] = []
    if middle != source:
        way.append(("Reshape", middle, ()))
    at = middle
    if real != sorted(real):
        at = tuple(middle[i] for i in perm)
        way.append(("Transpose", at, tuple(perm)))
    if at != layout.shape:
        if way and way[-1][0] == "Reshape":
            way.pop()
        way.append(("Reshape", layout.shape, ()))
    if len(way) == 1 and way[0][0] == "Reshape" and layout.shape == source:
        return []
    return way


def _with_units(first: list[tuple[Factor, ...]], real: list[int], shape: tuple[Dim, ...]) -> list[int]:
    """Returns the permutation with the dimensions of 1 where the result has its own, as far as they go."""
    units = [i for i, g in enumerate(first) if not g]
    rest = list(real)
    perm: list[int] = []
    if len(first) == len(shape):
        for dim in shape:
            source = units if dim == dims.ONE and units else rest
            if source:
                perm.append(source.pop(0))
    return perm + units + rest if perm else units + rest


def _by_source(layout: Layout) -> list[Step] | None:
    owners: dict[int, list[Factor]] = {}
    for factor in sorted(layout.sizes):
        owners.setdefault(factor[0], []).append(factor)
    first = [tuple(owners.get(axis, ())) for axis in range(len(layout.dims))]
    return _way(layout.dims, first, layout)


def _by_result(layout: Layout) -> list[Step] | None:
    ordered = sorted((g for g in layout.groups if g), key=lambda g: g[0])
    if [f for g in ordered for f in g] != sorted(layout.sizes):
        return None
    units: list[tuple[Factor, ...]] = [g for g in layout.groups if not g]
    plain = _way(layout.dims, [*units, *ordered], layout)
    if not units:
        return plain
    # dimensions of 1 where the result has them, if the order of the others allows it
    return min((w for w in (plain, _way(layout.dims, ordered, layout)) if w is not None), key=len, default=None)


def _by_blocks(layout: Layout) -> list[Step] | None:
    order = {f: i for i, f in enumerate(sorted(layout.sizes))}
    blocks: list[list[Factor]] = []
    for factor in layout.flat:
        if blocks and order[factor] == order[blocks[-1][-1]] + 1:
            blocks[-1].append(factor)
        else:
            blocks.append([factor])
    return _way(layout.dims, sorted((tuple(b) for b in blocks), key=lambda b: b[0]), layout)


def is_layout(node: ir.Node | None) -> bool:
    """Whether `node` only rearranges its first input."""
    if node is None or node.domain != "" or node.op_type not in OPS:
        return False
    return node.op_type in ("Transpose", "Flatten") or _has_constants(node)


def _has_constants(node: ir.Node) -> bool:
    return len(node.inputs) < 2 or node.inputs[1] is None or integers(node.inputs[1]) is not None
