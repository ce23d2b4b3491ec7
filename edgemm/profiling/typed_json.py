"""Holds JSON values against types: what keeps one from being of a TypedDict, with the place of each problem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def problems_with(value: Any, kind: Any, place: str = "") -> Iterator[str]:
    """Yields what keeps `value` from being of `kind`, one line each; nothing if it is.

    Numbers must be finite. Keys that a TypedDict does not name are left alone.

    Args:
        value: Of JSON.
        kind: A TypedDict, `list[...]`, `dict[str, ...]`, a Literal, a union, a plain type of JSON, or Any.
        place: Where the value is, `"stages[1].share"` for example.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if is_typeddict(kind):
        yield from _fields(value, kind, place)
    elif origin in (Union, UnionType):
        yield from _least(value, arguments, place)
    elif origin is Literal:
        if value not in arguments:
            yield f"{place}: got {shown(value)}, expected one of {', '.join(map(str, arguments))}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{place}: got {shown(value)}, expected a list"
            return
        for at, item in enumerate(value):
            yield from problems_with(item, arguments[0], f"{place}[{at}]")
    elif origin is dict:
        if not isinstance(value, Mapping):
            yield f"{place}: got {shown(value)}, expected an object"
            return
        for key, item in value.items():
            yield from problems_with(item, arguments[1], f"{place}.{key}")
    elif not _is(value, kind):
        yield f"{place}: got {shown(value)}, expected {_NAMES[kind]}"


def shown(value: object) -> str:
    """Returns a value as a message has it: short, and `null` for None."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _fields(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{place}: got {shown(value)}, expected an object"
        return
    for key, field in get_type_hints(kind).items():
        where = f"{place}.{key}" if place else key
        if key in value:
            yield from problems_with(value[key], field, where)
        elif key in kind.__required_keys__:
            yield f"{where}: missing"


def _least(value: Any, kinds: tuple[Any, ...], place: str) -> list[str]:
    """Returns the problems with the kind that a value comes closest to; of objects, that of most common keys."""
    if isinstance(value, Mapping):
        objects = [kind for kind in kinds if is_typeddict(kind)]
        if objects:
            kinds = (max(objects, key=lambda kind: len(get_type_hints(kind).keys() & value.keys())),)
    return min(([*problems_with(value, kind, place)] for kind in kinds), key=len)


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
