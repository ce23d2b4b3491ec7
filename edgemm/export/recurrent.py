"""Recurrent layers over a dynamic number of time steps.

torch.export unrolls LSTM and GRU while it works out their shapes and so fixes the number of steps, although the
ONNX operators loop by themselves. Here those layers are traced as opaque operators with symbolic shapes, and
translated with the ONNX functions that torch.onnx has for the original ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.fx import Interpreter
from torch.overrides import TorchFunctionMode


@contextmanager
def opaque_recurrent_layers(active: bool) -> Iterator[None]:
    """Inside the block, if `active`, LSTM and GRU layers are traced as single operators over symbolic time."""
    if not active:
        yield
        return
    with _OpaqueRecurrent():
        yield


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Returns the `custom_translation_table` for torch.onnx.export that knows the opaque operators."""
    from onnxscript.function_libs.torch_lib.ops import core

    def lstm(data: Any, hx: Any, cx: Any, params: Any, flags: Any) -> Any:
        return core.aten_lstm(data, [hx, cx], params, *_unpack(flags))

    def gru(data: Any, hx: Any, params: Any, flags: Any) -> Any:
        return core.aten_gru(data, hx, params, *_unpack(flags))

    lstm_operator, gru_operator = _operators()
    return {lstm_operator: lstm, gru_operator: gru}


class RecurrentInterpreter(Interpreter):
    """Runs an exported graph node by node; inside `opaque_recurrent_layers` with the opaque operators."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the result of one node."""
        if target in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
            _check_hidden(args)
        name = {torch.ops.aten.lstm.input: "lstm", torch.ops.aten.gru.input: "gru"}.get(target)
        if name and not kwargs and any(isinstance(m, _OpaqueRecurrent) for m in _modes()):
            result = _opaque(name, args)
            if result is not None:
                return result
        return super().call_function(target, args, kwargs)


def _check_hidden(args: tuple[Any, ...]) -> None:
    """Compares the batch of the hidden state with the data's; torch's own kernels crash instead."""
    data, hidden, batch_first = args[0], args[1], args[8] if len(args) > 8 else False
    for state in hidden if isinstance(hidden, (list, tuple)) else [hidden]:
        if (
            data.dim() == 3
            and isinstance(state.shape[1], int)
            and isinstance(data.shape[0 if batch_first else 1], int)
        ):
            count = data.shape[0 if batch_first else 1]
            if state.shape[1] != count:
                raise RuntimeError(
                    f"the recurrent layer's initial state is for a batch of {state.shape[1]}, got {count}"
                )


class _OpaqueRecurrent(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("lstm", "gru") and not kwargs and len(args) == 9:
            result = _opaque(name, args)
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _modes() -> list[Any]:
    from torch.overrides import _get_current_function_mode_stack

    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _opaque(name: str, args: tuple[Any, ...]) -> Any:
    """Returns the opaque operator's result, or None for a form that it does not cover (packed, projected)."""
    data, hx, params = args[:3]
    if not isinstance(params, (list, tuple)) or not isinstance(data, torch.Tensor) or data.dim() != 3:
        return None
    flags = [int(bool(args[3])), int(args[4]), int(bool(args[7])), int(bool(args[8]))]
    per_layer = (4 if flags[0] else 2) * (2 if flags[2] else 1)
    if len(params) != per_layer * flags[1] or args[6]:
        return None
    lstm, gru = _operators()
    if name == "lstm":
        return lstm(data, hx[0], hx[1], list(params), flags)
    return gru(data, hx, list(params), flags)


def _unpack(flags: Sequence[int]) -> tuple[bool, int, float, bool, bool, bool]:
    biases, layers, bidirectional, batch_first = flags
    return bool(biases), layers, 0.0, False, bool(bidirectional), bool(batch_first)


@cache
def _operators() -> tuple[Any, Any]:
    """Defines `edgemm::lstm` and `edgemm::gru` once per process; returns their overloads."""
    end = "Tensor[] params, int[] flags) -> "

    def lstm(data: Any, hx: Any, cx: Any, params: Any, flags: Any) -> Any:
        return torch.lstm(data, [hx, cx], params, *_unpack(flags))

    def lstm_shapes(data: Any, hx: Any, cx: Any, params: Any, flags: Any) -> Any:
        steps = data.new_empty((*data.shape[:2], hx.shape[2] * (2 if flags[2] else 1)))
        return steps, torch.empty_like(hx), torch.empty_like(cx)

    def gru(data: Any, hx: Any, params: Any, flags: Any) -> Any:
        return torch.gru(data, hx, params, *_unpack(flags))

    def gru_shapes(data: Any, hx: Any, params: Any, flags: Any) -> Any:
        return data.new_empty((*data.shape[:2], hx.shape[2] * (2 if flags[2] else 1))), torch.empty_like(hx)

    for name, schema, run, shapes in (
        ("edgemm::lstm", f"(Tensor data, Tensor hx, Tensor cx, {end}(Tensor, Tensor, Tensor)", lstm, lstm_shapes),
        ("edgemm::gru", f"(Tensor data, Tensor hx, {end}(Tensor, Tensor)", gru, gru_shapes),
    ):
        operator = torch.library.custom_op(name, run, mutates_args=(), schema=schema)
        operator.register_fake(shapes)
    return torch.ops.edgemm.lstm.default, torch.ops.edgemm.gru.default
