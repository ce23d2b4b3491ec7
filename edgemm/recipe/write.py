"""Writes recipes that explain themselves: what is given live, the rest commented out, all with descriptions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from edgemm.recipe.fields import has_free_keys, is_list, section_in
from edgemm.recipe.schema import Recipe
from edgemm.recipe.section import Section

SCHEMA_FILE = "recipe.schema.json"
"""Name under which editors look for the schema, beside the recipe."""

_WIDTH = 108
_UNSET = "..."
"""Stands for a value that a field has no default for."""


def hint_line() -> str:
    """Returns the comment that tells an editor's YAML support where the schema is."""
    return f"# yaml-language-server: $schema={SCHEMA_FILE}"


def schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a recipe, with every description and default."""
    found = Recipe.model_json_schema()
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgemm recipe"}
    return title | {key: value for key, value in found.items() if key != "title"}


def whole_yaml(recipe: Recipe, head: Sequence[str] = ()) -> str:
    """Returns a recipe as YAML with all its defaults and a comment for every field."""
    given = {k: v for k, v in recipe.model_dump(mode="json").items() if v is not None}
    return _text(_Writer(defaults="live").section(Recipe, given), head)


def commented_yaml(
    fields: Mapping[str, Any], head: Sequence[str] = (), notes: Mapping[str, str] | None = None
) -> str:
    """Returns YAML with `fields` live; everything else is commented out, with its default and description.

    Taking away the `#` at the start of a line makes its field live.

    Args:
        fields: Nested sections.
        head: Comment lines at the top.
        notes: Dotted field -> what to say of it beside its description.
    """
    return _text(_Writer(defaults="commented", notes=notes or {}).section(Recipe, fields), head)


def _text(lines: Iterator[str], head: Sequence[str]) -> str:
    top = [hint_line(), *(f"# {line}".rstrip() for line in head), ""]
    return "\n".join([*top, *lines]).rstrip() + "\n"


@dataclass(frozen=True, slots=True)
class _Writer:
    defaults: str
    notes: Mapping[str, str] = field(default_factory=dict)

    def section(
        self, section: type[Section], given: Mapping[str, Any], path: str = "", depth: int = 0, off: bool = False
    ) -> Iterator[str]:
        """Yields the lines of a section; `off` says that all of it is commented out."""
        for name, info in section.model_fields.items():
            yield from self.entry(name, info, given, f"{path}{name}", depth, off)
            if depth == 0:
                yield ""

    def entry(
        self, name: str, info: FieldInfo, given: Mapping[str, Any], path: str, depth: int, off: bool
    ) -> Iterator[str]:
        live, pad = name in given and not off, "  " * depth
        inner = section_in(info.annotation)
        optional = info.default is None and not info.is_required()
        if self.defaults == "live" and not live and inner is not None and optional:
            return  # a section that may be left out, and is
        yield from self.comment(info, inner, path, pad, off)
        if inner is None or is_list(info.annotation) or (has_free_keys(info.annotation) and not given.get(name)):
            value = given.get(name) if live else _default(info)
            yield from _value(name, value, pad, off, commented=not live)
        elif has_free_keys(info.annotation):
            yield f"{pad}{name}:"
            for key, part in given[name].items():
                yield f"{pad}  {_flow(key)}:"
                yield from self.section(inner, part, f"{path}.{key}.", depth + 2)
        else:
            part = given.get(name) or {}
            closed = off or not (live and part)
            yield f"{'#' if closed and not off else ''}{pad}{name}:"
            body = self.section(inner, part, f"{path}.", depth + 1, closed)
            yield from (f"#{line}" for line in body) if closed and not off else body

    def comment(
        self, info: FieldInfo, inner: type[Section] | None, path: str, pad: str, off: bool
    ) -> Iterator[str]:
        text = info.description or (inner.__doc__ or "").strip().partition("\n")[0]
        if note := self.notes.get(path):
            text = f"{text} {note}"
        for line in textwrap.wrap(text, _WIDTH - len(pad)):
            yield f"{pad}# {line}"


def _default(info: FieldInfo) -> Any:
    if info.is_required():
        return _UNSET
    value = info.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def _value(name: str, value: Any, pad: str, off: bool, *, commented: bool) -> Iterator[str]:
    """Yields `name: value`, a list of mappings as one line per item."""
    mark = "#" if commented and not off else ""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        yield f"{mark}{pad}{name}:"
        yield from (f"{mark}{pad}  - {_flow(item)}" for item in value)
    else:
        yield f"{mark}{pad}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Returns a value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
