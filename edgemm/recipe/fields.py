"""The schema as a tree: which fields a section has, what one is called in full, and which name was meant."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from edgemm.recipe.schema import Recipe
from edgemm.recipe.section import Section

ANY = "NAME"
"""Stands for a key that the user chooses, an input's name for example."""


@dataclass(frozen=True, slots=True)
class Known:
    """A field of the schema: its dotted name, what it says of itself, and the section that it may open."""

    name: str
    info: FieldInfo
    section: type[Section] | None

    @property
    def key(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def section_in(annotation: Any) -> type[Section] | None:
    """Returns the section in an annotation: `Section` itself, in an `Optional`, a dict or a tuple; or None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated, dict, tuple, list, Mapping):
        return next((s for a in get_args(annotation) if (s := section_in(a)) is not None), None)
    return None


def has_free_keys(annotation: Any) -> bool:
    """Says whether the user chooses the keys of a field: the names of inputs, modalities or dimensions."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, Annotated):
        return any(has_free_keys(a) for a in get_args(annotation))
    return origin is dict


def is_list(annotation: Any) -> bool:
    """Says whether a field is a list of sections."""
    return get_origin(annotation) in (tuple, list) and section_in(annotation) is not None


def every_field(section: type[Section] = Recipe, prefix: str = "") -> Iterator[Known]:
    """Yields every field below a section, sections first and then what is in them; free keys are `NAME`."""
    for name, info in section.model_fields.items():
        found = Known(f"{prefix}{name}", info, section_in(info.annotation))
        yield found
        if found.section is not None:
            between = f"{ANY}." if has_free_keys(info.annotation) else "0." if is_list(info.annotation) else ""
            yield from every_field(found.section, f"{found.name}.{between}")


def section_at(loc: tuple[str | int, ...]) -> type[Section] | None:
    """Returns the section that a path leads to, None where it leads to a value or out of the schema."""
    return _step(loc)[0]


def fields_below(loc: tuple[str | int, ...]) -> tuple[str, ...] | None:
    """Returns the names that may follow a path; None where the user chooses them, or nothing may follow."""
    section, free = _step(loc)
    return tuple(section.model_fields) if section is not None and not free else None


def _step(loc: tuple[str | int, ...]) -> tuple[type[Section] | None, bool]:
    """Returns the section at or around a path, and whether a name or a number of the user's comes next."""
    section: type[Section] | None = Recipe
    free = False
    for part in loc:
        if free:
            free = False
            continue
        info = section.model_fields.get(str(part)) if section is not None else None
        if info is None:
            return None, False
        section, free = section_in(info.annotation), has_free_keys(info.annotation) or is_list(info.annotation)
    return section, free


def field_at(loc: tuple[str | int, ...]) -> FieldInfo | None:
    """Returns the field that a path leads to or into."""
    for end in range(len(loc), 0, -1):
        section, last = section_at(loc[: end - 1]), loc[end - 1]
        if section is not None and isinstance(last, str) and last in section.model_fields:
            return section.model_fields[last]
    return None


def meant(loc: tuple[str | int, ...]) -> str:
    """Returns a hint for a field that does not exist: the closest one here, or one of that name elsewhere."""
    name = str(loc[-1])
    section = section_at(loc[:-1])
    here = list(section.model_fields) if section is not None else []
    elsewhere: dict[str, str] = {}
    for known in every_field():
        elsewhere.setdefault(known.key, known.name)
    if name in elsewhere:
        return f"did you mean '{elsewhere[name]}'?"
    if close := get_close_matches(name, here, n=1):
        return f"did you mean '{close[0]}'?"
    if close := get_close_matches(name, list(elsewhere), n=1, cutoff=0.8):
        return f"did you mean '{elsewhere[close[0]]}'?"
    return f"fields here: {', '.join(here)}" if here else "take it out"
