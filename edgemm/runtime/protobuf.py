"""Reads protobuf's wire format: the few fields of an ONNX file that a device looks at, without the onnx package.

Field numbers are those of onnx.proto. Nothing is copied: messages are views of the file's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def last(message: memoryview, field: int) -> memoryview:
    """Returns the last submessage in `field`, empty when it is not there."""
    found = messages(message, field)
    return found[-1] if found else memoryview(b"")


def messages(message: memoryview, field: int) -> list[memoryview]:
    """Returns the submessages, strings or bytes in `field`."""
    return [value for n, value in fields(message) if n == field and isinstance(value, memoryview)]


def text(message: memoryview, field: int) -> str:
    """Returns the last string in `field`, empty when there is none."""
    return str(last(message, field), "utf-8")


def number(message: memoryview, field: int) -> int:
    """Returns the first integer in `field`, 0 when there is none."""
    return next((value for n, value in fields(message) if n == field and isinstance(value, int)), 0)


def numbers(message: memoryview, field: int) -> list[int]:
    """Returns the integers of a repeated `field`, packed or not."""
    result: list[int] = []
    for n, value in fields(message):
        if n != field:
            continue
        if isinstance(value, int):
            result.append(value)
            continue
        at = 0
        while at < len(value):
            found, at = _varint(value, at)
            result.append(found)
    return result


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yields the field number and value of every field of a message; fixed-size values are skipped.

    Raises:
        ValueError: The bytes are no message.
        IndexError: They end in the middle of a number.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > end:
                raise ValueError("it ends in the middle of a field")
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} does not exist")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
