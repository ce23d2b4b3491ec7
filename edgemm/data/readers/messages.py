"""Messages of recordings as arrays: images, point clouds, inertial data, audio, and members by their names.

A message is whatever its decoder gives: an object with members, or a mapping (JSON). It is told by the members
that it has, so that ROS and Foxglove messages of the same build are read alike. Layouts are those of the message
definitions in ros2/common_interfaces (sensor_msgs), foxglove/schemas and ros-drivers/audio_common.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemm.data.readers.decode import decode, from_pixels, sniff, sound
from edgemm.data.readers.rules import Rule, class_index, finish
from edgemm.errors import DataError, did_you_mean

_ENCODINGS: dict[str, tuple[str, int]] = {
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "mono8": ("u1", 1),
    "8uc1": ("u1", 1),
    "8uc3": ("u1", 3),
    "mono16": ("u2", 1),
    "16uc1": ("u2", 1),
    "rgb16": ("u2", 3),
    "32fc1": ("f4", 1),
}
"""Encoding of a raw image -> type and number of its channels."""

_POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""PointField's datatypes."""

_FOXGLOVE_TYPES = {1: "u1", 2: "i1", 3: "u2", 4: "i2", 5: "u4", 6: "i4", 7: "f4", 8: "f8"}
"""The datatypes of foxglove.PackedElementField."""

_IMU = ("linear_acceleration", "angular_velocity")
_SKIPPED = ("header", "timestamp", "layout")


def member(message: Any, name: str, otherwise: Any = None) -> Any:
    """Returns a member of a message, or `otherwise`."""
    if isinstance(message, Mapping):
        return message.get(name, otherwise)
    return getattr(message, name, otherwise)


def members(message: Any) -> tuple[str, ...]:
    """Returns the names of the members of a message; nothing for a plain value."""
    if isinstance(message, Mapping):
        return tuple(message)
    descriptor = getattr(message, "DESCRIPTOR", None)  # protobuf
    if descriptor is not None:
        return tuple(field.name for field in descriptor.fields)
    names = getattr(message, "__dataclass_fields__", None) or getattr(message, "__slots__", None)
    return tuple(n for n in names if not n.startswith("_")) if names and not isinstance(message, str) else ()


def message_array(message: Any, rule: Rule, where: str) -> np.ndarray:
    """Returns what one message holds, by the rule but its window.

    Raises:
        DataError: It has no such member, holds no numbers, or is an image of an encoding that is not read.
    """
    if rule.field:
        return _fields(message, rule, where)
    names = set(members(message))
    if {"fields", "data", "point_step"} <= names or {"fields", "data", "point_stride"} <= names:
        return finish(rule, point_cloud(message, None, where), where)
    if {"encoding", "data", "height", "width", "step"} <= names:
        return finish(rule, from_pixels(raw_image(message, where), rule, where), where)
    if {"format", "data"} <= names and "sample_rate" not in names:
        return decode(_bytes(member(message, "data")), "", rule, where)
    if set(_IMU) <= names:
        return finish(rule, _flat([flatten(member(message, n), where) for n in _IMU]), where)
    if "data" in names and names <= {"data", "header", "timestamp", "format", "sample_rate", "number_of_channels"}:
        return _data(message, rule, where)
    if "data" in names and "layout" in names:
        return finish(rule, flatten(member(message, "data"), where), where)
    kept = [n for n in members(message) if n not in _SKIPPED]
    if rule.classes is None and len(kept) != 1:
        raise DataError(
            f"{where}: the message has several members: {', '.join(kept)}.",
            hint=f"say which: field: [{', '.join(kept[:2])}]",
        )
    return _value(member(message, kept[0]), rule, where)


def _fields(message: Any, rule: Rule, where: str) -> np.ndarray:
    names = set(members(message))
    if {"fields", "data", "point_step"} <= names or {"fields", "data", "point_stride"} <= names:
        return finish(rule, point_cloud(message, rule.field, where), where)
    values = [_at(message, path, where) for path in rule.field]
    if len(values) == 1:
        return _value(values[0], rule, where)
    return finish(rule, _flat([flatten(v, where) for v in values]), where)


def _at(message: Any, path: str, where: str) -> Any:
    value = message
    for name in path.split("."):
        known = members(value)
        if name not in known:
            hint = did_you_mean(name, known, f"members: {', '.join(known) or 'none'}")
            raise DataError(f"{where}: no member '{path}' in the message.", hint=hint)
        value = member(value, name)
    return value


def _value(value: Any, rule: Rule, where: str) -> np.ndarray:
    if rule.classes is not None:
        return class_index(rule, str(value), where)
    return finish(rule, flatten(value, where), where)


def _data(message: Any, rule: Rule, where: str) -> np.ndarray:
    """Returns the values of a message with `data` alone: text of a class, a number, an array, or audio."""
    value = member(message, "data")
    if rule.classes is not None:
        return class_index(rule, str(value), where)
    rate = int(member(message, "sample_rate", 0) or 0)
    raw = isinstance(value, bytes | bytearray) or rate
    if not raw and not (rule.rate or rule.channels == "mono"):
        return finish(rule, flatten(value, where), where)
    data = _bytes(value)
    if sniff(data):
        return decode(data, "", rule, where)
    channels = int(member(message, "number_of_channels", 0) or 1)
    pcm = np.frombuffer(data[: len(data) - len(data) % (2 * channels)], "<i2").reshape(-1, channels)
    samples = pcm if rule.dtype == "int16" else (pcm / np.float32(32768)).astype(np.float32)
    return finish(rule, sound(samples, rate, rule, where), where)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):  # JSON
        return base64.b64decode(value)
    return value if isinstance(value, bytes) else np.asarray(value).astype(np.uint8, copy=False).tobytes()


def flatten(value: Any, where: str) -> np.ndarray:
    """Returns the numbers of a value: one, an array, or those of all members of a message in their order.

    Raises:
        DataError: There are others than numbers.
    """
    names = [n for n in members(value) if n not in _SKIPPED]
    if names:
        return _flat([flatten(member(value, name), where) for name in names])
    if isinstance(value, list | tuple) and value and members(value[0]):
        return np.stack([flatten(item, where) for item in value])
    if isinstance(value, bytes | bytearray):
        return np.frombuffer(bytes(value), np.uint8).copy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: {type(value).__name__} {str(value)[:30]!r} is no number.",
            hint="choose members with numbers: `field: a.b`, or name classes",
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.atleast_1d(part).ravel() for part in parts])


def raw_image(message: Any, where: str) -> np.ndarray:
    """Returns the pixels of a raw image [H,W,C] in RGB order, alpha dropped, in native byte order.

    Raises:
        DataError: An encoding that is not read, or fewer bytes than the sizes say.
    """
    encoding = str(member(message, "encoding")).lower()
    if encoding not in _ENCODINGS:
        raise DataError(
            f"{where}: images of encoding '{encoding}' are not read (known: {', '.join(_ENCODINGS)}).",
            hint="convert the topic, for example with image_proc (Bayer) or image_transport",
        )
    kind, channels = _ENCODINGS[encoding]
    height, width, step = (int(member(message, n)) for n in ("height", "width", "step"))
    dtype = np.dtype(kind).newbyteorder(">" if member(message, "is_bigendian", 0) else "<")
    data = _bytes(member(message, "data"))
    line = width * channels * dtype.itemsize
    if step < line or len(data) < step * (height - 1) + line:
        raise DataError(
            f"{where}: {len(data)} bytes of image, expected {height} lines of {step} bytes.",
            hint="the recording is damaged, or its `step` is wrong",
        )
    padded = np.zeros(step * height, np.uint8)
    padded[: min(len(data), step * height)] = np.frombuffer(data, np.uint8)[: step * height]
    lines = padded.reshape(height, step)[:, :line]
    pixels = np.ascontiguousarray(lines).view(dtype).reshape(height, width, channels)
    pixels = pixels.astype(dtype.newbyteorder("="))
    if channels == 4:
        pixels = pixels[:, :, :3]
    return pixels[:, :, ::-1] if encoding.startswith("bgr") else pixels


def point_cloud(message: Any, chosen: tuple[str, ...] | None, where: str) -> np.ndarray:
    """Returns points [N,F] as float32: the chosen fields, else x, y, z and intensity if there is one.

    Points with NaN in them (no return) are left out.

    Raises:
        DataError: No such field, or fewer bytes than the sizes say.
    """
    stride = member(message, "point_stride")
    types, step = (
        (_POINT_TYPES, int(member(message, "point_step"))) if stride is None else (_FOXGLOVE_TYPES, stride)
    )
    order = ">" if member(message, "is_bigendian", False) else "<"
    found = {}
    for entry in member(message, "fields"):
        code = member(entry, "datatype", None)
        code = member(entry, "type", 0) if code is None else code
        if int(code) in types:
            found[str(member(entry, "name"))] = (order + types[int(code)], int(member(entry, "offset")))
    names = chosen or (*(n for n in ("x", "y", "z", "intensity") if n in found),)
    for name in names:
        if name not in found:
            hint = did_you_mean(name, found, f"fields: {', '.join(found)}")
            raise DataError(f"{where}: the points have no field '{name}'.", hint=hint)
    data = _bytes(member(message, "data"))
    width, height = member(message, "width"), member(message, "height")
    row_step = int(member(message, "row_step", 0) or 0)
    if width is not None and height is not None and int(height) > 1 and row_step > int(width) * step:
        lines = np.frombuffer(data, np.uint8)[: row_step * int(height)].reshape(int(height), row_step)
        data = np.ascontiguousarray(lines[:, : int(width) * step]).tobytes()
    count = len(data) // int(step)
    if width is not None and count < int(width) * int(height or 1):
        raise DataError(f"{where}: {len(data)} bytes of points, too few.", hint="the recording is damaged")
    packed = np.dtype(
        {
            "names": list(names),
            "formats": [found[n][0] for n in names],
            "offsets": [found[n][1] for n in names],
            "itemsize": int(step),
        }
    )
    points = np.frombuffer(data, packed, count)
    columns = np.stack([points[n].astype(np.float32) for n in names], axis=1) if names else np.zeros((count, 0))
    kept: np.ndarray = columns[~np.isnan(columns).any(axis=1)]
    return kept.astype(np.float32, copy=False)


def stamp(message: Any) -> int | None:
    """Returns the time in a message's header (or its `timestamp`) in nanoseconds, or None where it has none."""
    time = member(member(message, "header"), "stamp") if member(message, "header") is not None else None
    time = member(message, "timestamp") if time is None else time
    if time is None:
        return None
    seconds = member(time, "sec", member(time, "seconds"))
    rest = next((member(time, n) for n in ("nanosec", "nsec", "nanos") if member(time, n) is not None), 0)
    if seconds is None or not isinstance(seconds, int | np.integer):
        return None
    total = int(seconds) * 1_000_000_000 + int(rest)
    return total or None
