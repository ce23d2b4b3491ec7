"""Opens the batch of an exported program that was saved with one example.

`torch.export.export(model, (image,))` without dynamic shapes writes the example's batch into every view, expand
and initial state: `x.view(x.size(0), -1)` becomes `view(x, [1, -1])`. The sizes that stand for the batch are found
by running the graph at another batch and following which axis grew; each find is a guess until the caller has
compared a batch with single runs, and a wrong one is taken back.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgemm.export.flatten import FlatProgram
from edgemm.export.recurrent import RecurrentInterpreter
from edgemm.tensors import Feed

_aten = torch.ops.aten
_VIEWS = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.view_copy.default}
_BROADCASTS = {_aten.expand.default, _aten.repeat.default, _aten.broadcast_to.default}
# Operator -> position of its size argument.
_FACTORIES: dict[Any, int] = {
    _aten.zeros.default: 0, _aten.ones.default: 0, _aten.full.default: 0, _aten.empty.memory_format: 0,
    _aten.new_zeros.default: 1, _aten.new_ones.default: 1, _aten.new_full.default: 1, _aten.new_empty.default: 1,
}  # fmt: skip
_RECURRENT = {_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input}
_MOST_TRIES = 48


@dataclass(slots=True)
class _Search:
    """Depth-first choice of the size that holds the batch, one choice for all nodes that look the same."""

    chosen: dict[Any, int | None] = field(default_factory=dict)
    left: dict[Any, list[int | None]] = field(default_factory=dict)
    order: list[Any] = field(default_factory=list)

    def choose(self, key: Any, options: Sequence[int | None]) -> int | None:
        if key not in self.chosen:
            self.chosen[key], *rest = options
            self.left[key] = rest
            self.order.append(key)
        return self.chosen[key]

    def back(self) -> bool:
        """Takes the last choice that has an alternative; False when all are used up."""
        while self.order:
            key = self.order[-1]
            if self.left[key]:
                self.chosen[key] = self.left[key].pop(0)
                return True
            self.order.pop()
            del self.chosen[key], self.left[key]
        return False


def reopen_batch(
    program: FlatProgram, feed: Feed, batch: tuple[int, int, int], accept: Callable[[], bool]
) -> bool:
    """Rewrites the literal batch sizes in `program`; True when `accept` then agrees, else nothing is changed.

    Args:
        program: The exported program; changed in place on success.
        feed: One call at another batch size than the one written into the program, in input order.
        batch: Position of an input among the program's tensors, its batch axis, and the batch size that was
            written into the program.
        accept: Compares the rewritten program with single runs.
    """
    graph_module = program.model
    tensors = [torch.from_numpy(np.array(value)) for value in feed.values()]
    ratio = tensors[batch[0]].shape[batch[1]] / batch[2]
    search = _Search()
    for _ in range(_MOST_TRIES):
        runner = _Follower(graph_module, search, batch[2], ratio)
        try:
            with torch.no_grad():
                runner.run(*program.place(tensors), enable_io_processing=False)
        except Exception:  # any operator may refuse a wrong guess
            if not search.back():
                return False
            continue
        undo = _rewrite(graph_module, program.tensor_placeholder(batch[0]), batch, runner.found)
        if accept():
            return True
        undo()
        if not search.back():
            return False
    return False


class _Follower(Interpreter):
    """Runs a graph at another batch size, choosing at every literal size which entry is the batch."""

    def __init__(self, module: GraphModule, search: _Search, size: int, ratio: float) -> None:
        super().__init__(module)
        self._search, self._size, self._ratio = search, size, ratio
        self._inner = RecurrentInterpreter(module)
        self._node: Node | None = None
        self.found: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        self._node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        node = self._node
        sizes = _literal_sizes(target, args)
        if node is not None and sizes is not None:
            options = self._options(node, target, args, sizes)
            key: Any = (target, tuple(sizes), _meta_shape(node.args[0]), _feeds_recurrent(node))
            if target is _aten.arange.default:  # counts samples here and heads there: each is its own question
                key = node
            index = self._search.choose(key, options) if options else None
            if index is not None and index < len(sizes) and sizes[index] > 0:
                sizes[index] = int(sizes[index] * self._ratio)
                self.found[node] = index
                args = _with_sizes(target, args, sizes)
        return self._inner.call_function(target, args, kwargs)

    def _options(self, node: Node, target: Any, args: tuple[Any, ...], sizes: list[int]) -> list[int | None]:
        if target in _VIEWS:
            return _view_options(_meta_shape(node.args[0]), args[0].shape, sizes, self._size, self._ratio)
        same = [i for i, s in enumerate(sizes) if s == self._size]
        if target in _BROADCASTS:
            grown = _grown_axis(_meta_shape(node.args[0]), args[0].shape)
            if target is _aten.repeat.default and grown is not None:
                return []
            lead = len(sizes) - args[0].dim()
            if grown is not None:
                return [grown + lead] if sizes[grown + lead] > 0 else []
        if _feeds_recurrent(node) and 1 in same:
            return [1]
        return [*same[:2], None] if same else []


def _literal_sizes(target: Any, args: Sequence[Any]) -> list[int] | None:
    """Returns the sizes in an operator's arguments when all are numbers; `arange(n)` has one."""
    if target is _aten.arange.default:
        return [args[0]] if type(args[0]) is int else None
    position = _FACTORIES.get(target, 1 if target in _VIEWS | _BROADCASTS else None)
    if position is None or len(args) <= position:
        return None
    return list(args[position]) if all(type(size) is int for size in args[position]) else None


def _with_sizes(target: Any, args: Sequence[Any], sizes: Sequence[Any]) -> tuple[Any, ...]:
    if target is _aten.arange.default:
        return (sizes[0], *args[1:])
    position = _FACTORIES.get(target, 1)
    return (*args[:position], list(sizes), *args[position + 1 :])


def _view_options(
    before: tuple[int, ...] | None, now: Sequence[int], sizes: list[int], size: int, ratio: float
) -> list[int | None]:
    """Returns the entries of a view that may hold the batch: those that cover the grown axis in memory order."""
    if before is None or (-1 in sizes and sizes.count(-1) == 1 and len(sizes) == 1):
        return []
    axis = _grown_axis(before, now)
    if axis is None:
        return []
    total = math.prod(before)
    known = math.prod(s for s in sizes if s != -1)
    full = [s if s != -1 else total // max(known, 1) for s in sizes]
    low = math.prod(before[:axis])
    high = low * before[axis]
    options: list[tuple[tuple[bool, bool], int]] = []
    for index, entry in enumerate(full):
        prefix = math.prod(full[:index])
        if prefix <= high and prefix * entry >= low:
            options.append(((entry != size, prefix != low), index))
    ordered = [index for _, index in sorted(options)]
    # An entry of -1 takes the batch by itself when no literal one does.
    return [None if sizes[i] == -1 else i for i in ordered]


def _grown_axis(before: tuple[int, ...] | None, now: Sequence[int]) -> int | None:
    if before is None or len(before) != len(now):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 else None


def _meta_shape(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor) or not all(isinstance(s, int) for s in value.shape):
        return None
    return tuple(value.shape)


def _feeds_recurrent(node: Node) -> bool:
    return any(user.target in _RECURRENT and node in _hidden(user) for user in node.users)


def _hidden(node: Node) -> list[Any]:
    hidden = node.args[1]
    return list(hidden) if isinstance(hidden, (list, tuple)) else [hidden]


def _rewrite(
    module: GraphModule, placeholder: Node, batch: tuple[int, int, int], found: Mapping[Node, int]
) -> Callable[[], None]:
    """Replaces the found literals by the batch input's size; returns what takes it back."""
    graph = module.graph
    old = {node: node.args for node in found}
    added: list[Node] = []
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        count = graph.call_function(_aten.sym_size.int, (placeholder, batch[1]))
    added.append(count)
    for node, index in found.items():
        sizes: list[Any] = list(_literal_sizes(node.target, node.args) or [])
        factor = sizes[index] / batch[2]
        size: Any = count
        if factor != 1:
            with graph.inserting_before(node):
                size = graph.call_function(operator.mul, (count, int(factor)))
            added.append(size)
        sizes[index] = size
        node.args = _with_sizes(node.target, node.args, sizes)
    module.recompile()

    def undo() -> None:
        for node, args in old.items():
            node.args = args
        for node in reversed(added):
            graph.erase_node(node)
        module.recompile()

    return undo
