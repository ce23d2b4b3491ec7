"""What the user says about one array of a sample, and the array made so.

A `Rule` is an entry under `inputs:` of a description file. Without one, an array is what the source holds: images
uint8 [H,W,C], audio float32 [T] or [T,C] in -1 to 1, numbers as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from edgemm.errors import DataError, did_you_mean

LAYOUTS = ("hwc", "chw", "hw", "tc", "ct")
CHANNELS = ("rgb", "bgr", "gray", "mono")
PLACES = ("column", "topic", "pattern", "extension", "array")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one array of every sample is made.

    Attributes:
        name: The array, named like the model's input.
        at: Where it is: a column, topic, file pattern, extension or array; several columns make one vector, and
            `pixel_*` stands for all columns that match. Empty: where the name of the array says.
        field: Members of a message or of JSON, `linear_acceleration.x`; several are put side by side.
        table: A CSV or Parquet file of its own, with its own times.
        time: Column or member with the time in seconds; `log`: the time of recording.
        dtype: numpy dtype name.
        size: Height and width that images are resized to (bilinear).
        shape: Shape that the values are given first; one size may be -1.
        channels: `rgb`, `bgr` or `gray` for images, `mono` for audio.
        scale: What values are multiplied by, before `mean` and `std`.
        mean: What is subtracted, one number or one per channel.
        std: What is divided by, one number or one per channel.
        layout: `hwc`, `chw` or `hw` for images, `tc` or `ct` (time, channels) for audio and sequences.
        rate: Hertz that audio is resampled to.
        length: Size of the first axis (samples of audio, points): longer rows are cut at their end, shorter ones
            are filled with zeros.
        window: Of a modality that is matched by time: so many messages or rows along a new first axis, the last of
            which is the match.
        classes: Names whose positions are the values of a label.
    """

    name: str
    at: tuple[str, ...] = ()
    field: tuple[str, ...] = ()
    table: str | None = None
    time: str | None = None
    dtype: str | None = None
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    channels: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    rate: int | None = None
    length: int | None = None
    window: int | None = None
    classes: tuple[str, ...] | None = None

    @property
    def place(self) -> str:
        """Where it is; the array's own name if nothing was said."""
        return self.at[0] if self.at else self.name


def parse_rule(origin: str, name: str, section: Any, place: str) -> Rule:
    """Returns the rule of the entry `name: section` of a description file.

    Args:
        origin: The description file, for messages.
        name: The array.
        section: A mapping, a text (where the array is), or None.
        place: What the form calls the place: `column`, `topic`, `pattern`, `extension` or `array`.

    Raises:
        DataError: An unknown key, or a value that is none for its key.
    """
    where = f"{origin}: inputs.{name}"
    if section is None or isinstance(section, str):
        section = {place: section} if section else {}
    if not isinstance(section, Mapping):
        raise DataError(
            f"{where}: got {section!r}, expected {{{place}: ...}}.", hint="write the place, or a mapping"
        )
    known = [f.name for f in fields(Rule) if f.name not in ("name", "at")]
    values: dict[str, Any] = {"name": name}
    for key, value in section.items():
        if key in PLACES:
            if key != place:
                raise DataError(f"{where}: '{key}' is not of this form.", hint=f"here it is `{place}:`")
            values["at"] = _texts(where, key, value)
        elif key not in known:
            raise DataError(
                f"{where}: no setting '{key}'.",
                hint=did_you_mean(str(key), [place, *known], f"settings: {', '.join([place, *known])}"),
            )
        elif value is not None:
            values[key] = _VALUES.get(key, _text)(where, key, value)
    return Rule(**values)


def _wrong(where: str, key: str, value: Any, expected: str) -> DataError:
    return DataError(f"{where}.{key}: got {value!r}, expected {expected}.", hint="see calibration/README.md")


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise _wrong(where, key, value, "a text")
    return str(value)


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    several = value if isinstance(value, list) else [value]
    if not several:
        raise _wrong(where, key, value, "a text or a list of texts")
    return tuple(_text(where, key, v) for v in several)


def _number(where: str, key: str, value: Any) -> float:
    try:
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise _wrong(where, key, value, "a number or a fraction like 1/255") from error
    if not np.isfinite(number):
        raise _wrong(where, key, value, "a finite number")
    return number


def _numbers(where: str, key: str, value: Any) -> tuple[float, ...]:
    return tuple(_number(where, key, v) for v in (value if isinstance(value, list) else [value]))


def _divisors(where: str, key: str, value: Any) -> tuple[float, ...]:
    numbers = _numbers(where, key, value)
    if 0 in numbers:
        raise _wrong(where, key, value, "numbers that are not 0")
    return numbers


def _count(where: str, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(where, key, value, "a whole number above 0")
    return value


def _shape(where: str, key: str, value: Any) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else [value]
    if any(not isinstance(v, int) or isinstance(v, bool) or v < -1 for v in sizes) or sizes.count(-1) > 1:
        raise _wrong(where, key, value, "whole numbers, at most one of them -1")
    return tuple(sizes)


def _size(where: str, key: str, value: Any) -> tuple[int, int]:
    sizes = value if isinstance(value, list) else [value, value]
    if len(sizes) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in sizes):
        raise _wrong(where, key, value, "[height, width]")
    return sizes[0], sizes[1]


def _one_of(*known: str) -> Any:
    def parse(where: str, key: str, value: Any) -> str:
        if value not in known:
            hint = did_you_mean(str(value), known, "see calibration/README.md")
            raise DataError(f"{where}.{key}: got {value!r}, expected one of {', '.join(known)}.", hint=hint)
        return str(value)

    return parse


def _dtype(where: str, key: str, value: Any) -> str:
    try:
        dtype = np.dtype(value)
    except TypeError as error:
        raise _wrong(where, key, value, "a numpy dtype like float32") from error
    if dtype.kind not in "fiub":
        raise _wrong(where, key, value, "a dtype of numbers like float32")
    return str(dtype.name)


_VALUES: dict[str, Any] = {
    "field": _texts,
    "classes": _texts,
    "dtype": _dtype,
    "size": _size,
    "shape": _shape,
    "channels": _one_of(*CHANNELS),
    "layout": _one_of(*LAYOUTS),
    "scale": _number,
    "mean": _numbers,
    "std": _divisors,
    "rate": _count,
    "length": _count,
    "window": _count,
}


def finish(rule: Rule, values: np.ndarray, where: str) -> np.ndarray:
    """Returns `values` shaped, cut or filled, scaled, cast and laid out as the rule says, in this order.

    Args:
        rule: What was said of the array.
        values: Image [H,W,C], sequence [T,C] or [T], or numbers of any shape.
        where: The place of the values, for messages.

    Raises:
        DataError: They cannot have the shape or layout, or a whole number was wanted and they are none.
    """
    row = values
    if rule.shape is not None:
        try:
            row = row.reshape(rule.shape)
        except ValueError as error:
            raise DataError(
                f"{where}: {row.size} values of shape {row.shape} cannot have the shape {list(rule.shape)}.",
                hint=f"correct inputs.{rule.name}.shape, or leave this row out",
            ) from error
    if rule.length is not None:
        row = _cut(row, rule.length)
    if rule.scale is not None or rule.mean is not None or rule.std is not None:
        row = _scaled(rule, row, where)
    if rule.dtype is not None:
        row = cast(row, rule.dtype, where)
    if rule.layout is not None:
        row = _laid_out(row, rule.layout, where)
    return np.ascontiguousarray(row) if row.ndim else row


def cast(row: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """Returns `row` as `dtype`.

    Raises:
        DataError: A whole number is wanted, and a value is none or does not fit.
    """
    if row.dtype.kind not in "fiub":
        raise DataError(f"{where}: got {row.dtype}, expected numbers.", hint="name the classes: classes: [...]")
    wanted = np.dtype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        result = row.astype(wanted)
        lossless = wanted.kind == "f" or np.array_equal(result.astype(row.dtype), row)
    if not lossless:
        raise DataError(
            f"{where}: values do not fit in {dtype} (smallest {row.min()}, largest {row.max()}).",
            hint="choose a float dtype, or scale them",
        )
    return result


def class_index(rule: Rule, text: str, where: str) -> np.ndarray:
    """Returns the position of `text` in the rule's classes, int64.

    Raises:
        DataError: It is none of them.
    """
    classes = rule.classes or ()
    if text not in classes:
        raise DataError(
            f"{where}: '{text}' is none of the classes of '{rule.name}' ({', '.join(classes[:8])}).",
            hint=did_you_mean(text, classes, "list every class in the description file: classes: [...]"),
        )
    return np.asarray(classes.index(text), np.int64)


def _cut(values: np.ndarray, length: int) -> np.ndarray:
    if values.ndim == 0 or len(values) == length:
        return values
    if len(values) > length:
        return values[:length]
    return np.concatenate([values, np.zeros((length - len(values), *values.shape[1:]), values.dtype)])


def _scaled(rule: Rule, values: np.ndarray, where: str) -> np.ndarray:
    row = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
    for name, numbers in (("mean", rule.mean), ("std", rule.std)):
        if numbers and len(numbers) > 1 and (row.ndim == 0 or row.shape[-1] != len(numbers)):
            raise DataError(
                f"{where}: {len(numbers)} numbers in '{name}' for a row of shape {row.shape}.",
                hint="give one number, or one per channel",
            )
    if rule.scale is not None:
        row = row * np.asarray(rule.scale, row.dtype)
    if rule.mean is not None:
        row = row - np.asarray(rule.mean, row.dtype)
    if rule.std is not None:
        row = row / np.asarray(rule.std, row.dtype)
    return row


def _laid_out(row: np.ndarray, layout: str, where: str) -> np.ndarray:
    if layout in ("tc", "ct"):
        row = row[:, None] if row.ndim == 1 else row
        wanted, fits = "a sequence of one or two axes", row.ndim == 2
    elif layout == "hw":
        wanted, fits = "an image of one channel", row.ndim == 3 and row.shape[2] == 1
    else:
        wanted, fits = "an image of three axes", row.ndim == 3
    if not fits:
        raise DataError(
            f"{where}: a row of shape {row.shape} has no layout '{layout}', expected {wanted}.",
            hint="correct or leave out `layout`; channels: gray makes one channel",
        )
    if layout == "hw":
        return row[:, :, 0]
    return row.transpose(2, 0, 1) if layout == "chw" else row.T if layout == "ct" else row


def join_columns(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns several values of one row as one vector: numbers stacked, arrays joined along their last axis."""
    if len(parts) == 1:
        return parts[0]
    if all(p.ndim == 0 for p in parts):
        return np.stack(parts)
    return np.concatenate([np.atleast_1d(p) for p in parts], axis=-1)
