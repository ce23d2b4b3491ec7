"""Nested arguments and results as flat, named tensors: the form in which ONNX and the runtime know a model."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgemm.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils import _pytree as pytree

OUTPUT = "output"
_PAST_ITEMS = ("key", "value", "cross_key", "cross_value")


class FlatModule(nn.Module):
    """A model as `forward(*tensors) -> tuple of tensors`, for eager runs and for tracing.

    Attributes:
        model: The user's module, a TorchScript module, or the graph module of an exported program.
        reserved: Names of the inputs, which no result may have.
        names: Names of the results, known after the first call.
    """

    def __init__(
        self, model: nn.Module, bind: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    ) -> None:
        super().__init__()
        self.model = model
        self.bind = bind
        self._returned = _returned_variables(model)
        self.reserved: frozenset[str] = frozenset()
        self.names: tuple[str, ...] = ()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns every tensor of the model's result, in the order of `names`."""
        args, kwargs = self.bind(tensors)
        named = flatten_result(self.model(*args, **kwargs), self._returned)
        self.names = tuple(_apart(name, self.reserved) for name in named)
        return tuple(named.values())


class FlatProgram(nn.Module):
    """An exported program as `forward(*tensors) -> tuple of tensors`.

    While it is traced again, its nodes are interpreted one by one, which keeps each node's module path and source
    line; the guards of the first export are dropped, so what it computes must be proven afterwards.
    """

    def __init__(
        self, model: torch.fx.GraphModule, out_spec: pytree.TreeSpec, constants: Mapping[int, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self._out_spec = out_spec
        self._constants = dict(constants)
        self.reserved: frozenset[str] = frozenset()
        self.names: tuple[str, ...] = ()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns every tensor of the program's result, in the order of `names`."""
        from torch.fx.traceback import preserve_node_meta
        from torch.utils import _pytree as pytree

        from edgemm.export.recurrent import RecurrentInterpreter

        with preserve_node_meta(enable=torch.compiler.is_exporting()):
            results = RecurrentInterpreter(self.model).run(*self.place(tensors), enable_io_processing=False)
        named = flatten_result(pytree.tree_unflatten(list(results), self._out_spec), None)
        self.names = tuple(_apart(name, self.reserved) for name in named)
        return tuple(named.values())

    def place(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """Returns the program's flat arguments: the tensors, with its constant arguments between them."""
        given = iter(tensors)
        count = len(tensors) + len(self._constants)
        return [self._constants[i] if i in self._constants else next(given) for i in range(count)]

    def tensor_placeholder(self, index: int) -> torch.fx.Node:
        """Returns the graph's placeholder of tensor input `index`."""
        nodes: list[torch.fx.Node] = [n for n in self.model.graph.nodes if n.op == "placeholder"]
        return [n for i, n in enumerate(nodes) if i not in self._constants][index]


def flatten_result(value: Any, returned: Sequence[str | None] | None) -> dict[str, torch.Tensor]:
    """Returns the tensors of a model's result by name; results that are None are left out.

    Names are dict keys, dataclass or `ModelOutput` fields, the variables of a `return a, b` statement
    (`returned`), or `output`, `output_1`, ... A nested result is joined with `_`; the keys and values of
    `past_key_values` are `past_0_key`, `past_0_value`, ...

    Raises:
        ExportError: A result is neither a tensor nor a container of tensors, or there is none.
    """
    named: dict[str, torch.Tensor] = {}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        for index, item in enumerate(value):
            variable = returned[index] if returned is not None and len(returned) == len(value) else None
            _collect(item, variable or (OUTPUT if index == 0 else f"{OUTPUT}_{index}"), named)
    else:
        _collect(value, OUTPUT if isinstance(value, torch.Tensor) else "", named)
    if not named:
        raise ExportError(
            f"the model returned no tensor (a {type(value).__name__}).",
            hint="forward() must return tensors, alone or in a dict, tuple or dataclass",
        )
    return named


def _apart(name: str, reserved: frozenset[str]) -> str:
    """Returns a result's name that is no input's: `past_0_key` → `present_0_key`, `h` → `h_out`."""
    if name not in reserved:
        return name
    return name.replace("past", "present", 1) if name.startswith("past") else f"{name}_out"


def _collect(value: Any, name: str, into: dict[str, torch.Tensor]) -> None:
    if value is None:
        return
    if isinstance(value, torch.Tensor):
        unique, count = name, 1
        while unique in into:
            unique, count = f"{name}_{count}", count + 1
        into[unique] = value
        return
    items = list(_items(value))
    if not items and not isinstance(value, (tuple, list, Mapping)):
        raise ExportError(
            f"the model's result '{name or OUTPUT}' is a {type(value).__name__} ({str(value)[:40]}), no tensor.",
            hint="return tensors only; wrap a number with torch.tensor(), leave settings out",
        )
    past = name == "past_key_values" or name.endswith("_past_key_values")
    for index, (key, item) in enumerate(items):
        if past:
            _collect_past(item, f"{name.removesuffix('_key_values')}_{index}", into)
        else:
            _collect(item, f"{name}_{key}" if name else str(key), into)


def _collect_past(layer: Any, name: str, into: dict[str, torch.Tensor]) -> None:
    if isinstance(layer, (tuple, list)) and len(layer) in (2, 4):
        for item, part in zip(layer, _PAST_ITEMS, strict=False):
            _collect(item, f"{name}_{part}", into)
    else:
        _collect(layer, name, into)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        yield from ((str(index), item) for index, item in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif hasattr(value, "self_attention_cache"):  # transformers' EncoderDecoderCache
        own, cross = value.self_attention_cache.layers, value.cross_attention_cache.layers
        yield from (
            (str(i), (a.keys, a.values, b.keys, b.values)) for i, (a, b) in enumerate(zip(own, cross, strict=True))
        )
    elif hasattr(value, "layers") and hasattr(value, "get_seq_length"):  # transformers' Cache
        yield from ((str(i), (layer.keys, layer.values)) for i, layer in enumerate(value.layers))


def _returned_variables(model: nn.Module) -> tuple[str | None, ...] | None:
    """Returns the variables of `return a, b + c` (`a`, None) when every return of forward() agrees on them."""
    try:
        source = textwrap.dedent(inspect.getsource(type(model).forward))
        function = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, AttributeError):
        return None
    found: set[tuple[str | None, ...] | None] = set()
    pending: list[ast.AST] = list(ast.iter_child_nodes(function))
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, ast.Return):
            parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            names = tuple(part.id if isinstance(part, ast.Name) else None for part in parts)
            found.add(names if len(parts) > 1 else None)
        pending.extend(ast.iter_child_nodes(node))
    return found.pop() if len(found) == 1 else None


def name_leaves(spec: pytree.TreeSpec, arguments: Sequence[str]) -> list[str]:
    """Returns a name for every leaf of an exported program's `(args, kwargs)` tree.

    A tensor that is an argument itself has the argument's name. A leaf of a dict argument has its key where that
    is unique; anything deeper is joined with `_`, and `past_key_values` gives `past_0_key`, ...
    """
    from torch.utils import _pytree as pytree

    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    full, short = [], []
    for path, _ in paths:
        keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", "")))) for k in path]
        top = arguments[int(keys[1])] if keys[0] == "0" and int(keys[1]) < len(arguments) else keys[1]
        rest = keys[2:]
        if top == "past_key_values" and len(rest) == 2 and rest[1].isdigit() and int(rest[1]) < len(_PAST_ITEMS):
            top, rest = "past", [rest[0], _PAST_ITEMS[int(rest[1])]]
        full.append("_".join([top, *rest]))
        short.append(rest[-1] if rest and not rest[-1].isdigit() and top != "past" else full[-1])
    chosen = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    return [re.sub(r"\s+", "_", name) for name in chosen]
