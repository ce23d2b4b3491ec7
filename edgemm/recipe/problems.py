"""What is wrong with a recipe, in words: field, place, what was given, what was expected, what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgemm.errors import RecipeError, did_you_mean
from edgemm.recipe.fields import field_at, meant, section_at
from edgemm.recipe.section import REFUSED
from edgemm.recipe.source import Loc, Place, RecipeText


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        origin: The file, or what else the value came from.
        field: Dotted name of the field; empty where it is about the whole recipe.
        message: What it got and what it expected.
        hint: What to do.
        place: Where in the file, if it is there.
    """

    origin: str
    field: str
    message: str
    hint: str
    place: Place | None = None

    @property
    def where(self) -> str:
        """`FILE:LINE:COLUMN`, which editors and terminals open."""
        return self.origin if self.place is None else f"{self.origin}:{self.place.line}:{self.place.column}"

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.message}" if self.field else f"{self.where}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        line, column = (self.place.line, self.place.column) if self.place is not None else (None, None)
        about = {"file": self.origin, "line": line, "column": column, "field": self.field}
        return about | {"message": self.message, "hint": self.hint}


def dotted(loc: Loc) -> str:
    """Returns `inputs.image.shape.1` of a path."""
    return ".".join(str(part) for part in loc)


def as_error(problems: Sequence[Problem]) -> RecipeError:
    """Returns an error that tells the first problem, and how many more there are."""
    first, more = problems[0], len(problems) - 1
    also = f" ({more} more; `edgemm recipe check` shows all)" if more else ""
    return RecipeError(f"{first}.{also}", hint=first.hint)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Returns problems from the top of the file to its end; those without a place first."""
    return sorted(problems, key=lambda p: (p.place.line, p.place.column) if p.place is not None else (0, 0))


def duplicates_of(text: RecipeText) -> list[Problem]:
    """Returns a problem for every key that a mapping has twice: YAML would silently take the last one."""
    return [
        Problem(
            text.origin,
            dotted(d.loc),
            f"given twice, first in line {d.first.line}",
            "take one of them out",
            d.again,
        )
        for d in text.duplicates
    ]


def unreadable(file: Path, error: RecipeError) -> Problem:
    """Returns the problem of a file that is no YAML mapping."""
    found = re.match(re.escape(str(file)) + r"(?::(\d+):(\d+))?: (.*)", str(error), re.DOTALL)
    if found is None:
        return Problem(str(file), "", str(error).rstrip("."), error.hint)
    line, column, message = found.groups()
    place = Place(int(line), int(column)) if line else None
    return Problem(str(file), "", message.rstrip("."), error.hint, place)


def problems_of(
    error: ValidationError, fields: Mapping[str, Any], text: RecipeText, overrides: Mapping[str, Any]
) -> list[Problem]:
    """Returns every complaint of pydantic once, where the value is and in our words.

    Args:
        error: What validation raised.
        fields: What was validated.
        text: The file, or an empty one that names where the fields came from.
        overrides: What options have laid over the file; a value of theirs has no place in it.
    """
    found: dict[Loc, list[Any]] = {}
    for item in error.errors(include_url=False):
        loc = existing(item["loc"], fields, item["type"])
        found.setdefault(loc, []).append(item)
    result = []
    for loc, items in found.items():
        given = _lookup(overrides, loc) is not _NOTHING and loc != ()
        by_key = items[0]["type"] in ("extra_forbidden", "missing")
        place = None if given else text.place(loc, key=by_key)
        origin = "options" if given else text.origin
        message = _either([_message(i, loc) for i in items])
        result.append(Problem(origin, dotted(loc), message, _hint(items, loc), place))
    return in_order(result)


def _either(messages: Sequence[str]) -> str:
    """Returns one message of those of a union's members: `got 'x', expected a number or a mapping`."""
    first, *others = dict.fromkeys(messages)
    begin, _, _ = first.partition(", expected ")
    rest = [m.removeprefix(f"{begin}, expected ") for m in others]
    return " or ".join([first, *rest])


_NOTHING = object()


def _lookup(fields: Any, loc: Loc) -> Any:
    for part in loc:
        is_item = isinstance(fields, (list, tuple)) and isinstance(part, int) and part < len(fields)
        if not is_item and not (isinstance(fields, Mapping) and part in fields):
            return _NOTHING
        fields = fields[part]
    return fields


def existing(loc: Loc, fields: Mapping[str, Any], kind: str) -> Loc:
    """Returns the path of an error of the type `kind` without what pydantic adds to it.

    These are the names of members of unions and of validators.
    """
    value: Any = fields
    kept: list[str | int] = []
    for part in loc:
        inner = _lookup(value, (part,))
        if inner is _NOTHING:
            last = kind == "missing" and part == loc[-1]
            return (*kept, part) if last else tuple(kept)
        kept.append(part)
        value = inner
    return tuple(kept)


def _message(item: Any, loc: Loc) -> str:
    kind, text = item["type"], item["msg"].removeprefix("Value error, ").rstrip(".")
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "it is missing"
    if kind in ("value_error", REFUSED):
        return str(text)
    section = section_at(loc) if kind in ("model_type", "model_attributes_type") else None
    expected = re.sub(r"^(Input should be|(Value|Input|String) should have) ", "", text)
    expected = re.sub(r",? unable to (parse|interpret).*$|, got .*$", "", expected)
    expected = f"a section of {', '.join(section.model_fields)}" if section is not None else expected
    expected = re.sub(r"^(greater|less) than", r"a number \1 than", expected)
    expected = (
        expected.replace("a valid dictionary", "a mapping")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
    )
    return f"got {_short(item['input'])}, expected {expected}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(items: Iterable[Any], loc: Loc) -> str:
    first = next(iter(items))
    if first["type"] == "extra_forbidden":
        return meant(loc)
    if first["type"] == REFUSED:
        return str(first["ctx"]["hint"])
    if "data.calib" in first["msg"]:
        return "give calibration samples with --calib, or choose --precision auto or fp32"
    info = field_at(loc)
    told = f"{info.description}" if info is not None and info.description else "see `edgemm recipe schema`"
    if first["type"] == "finite_number":
        default = None if info is None else info.default
        return f"{told} {'Leave it out, or give' if default is None else 'Give'} a finite number" + (
            f"; the default is {default:g}." if isinstance(default, float) else "."
        )
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        return did_you_mean(first["input"], re.findall(r"'([^']+)'", first["ctx"]["expected"]), told)
    return told
