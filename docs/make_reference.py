"""Writes docs/recipe-reference.md out of the schema of recipes.

python docs/make_reference.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgemm.recipe import Recipe
from edgemm.recipe.step_schema import STEP

PAGE = Path(__file__).parent / "recipe-reference.md"

HEAD = """# Recipe

A recipe is a YAML file with these sections. Paths are relative to its folder. `edgemm recipe init MODEL` begins
one for a model, `edgemm recipe check` tells everything that is wrong with it, `edgemm recipe schema` writes the
JSON Schema for editors, and `--set section.field=value` sets a field from the command line; numbers from 0 name
the items of a list, as in `quantize.rules.0.precision=float`.

This page is made from the schema: `python docs/make_reference.py`.
"""


def main() -> int:
    """Writes the page, or says whether it is what the schema says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare: code 1 if the page is not current")
    text = page()
    if parser.parse_args().check:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """Returns the page as Markdown."""
    schema = Recipe.model_json_schema(by_alias=True)
    sections = schema["$defs"]
    lines = [HEAD]
    alone = {name: field for name, field in schema["properties"].items() if _section(field, sections) is None}
    for name, field in schema["properties"].items():
        found = _section(field, sections)
        if found is not None:
            lines += [
                f"## {_place(name, field)}",
                "",
                field.get("description") or found.get("description", ""),
                "",
            ]
            lines += [*_table(found["properties"], found.get("required", ()), sections), ""]
            lines += [line for inner in _inner(found["properties"], sections) for line in inner]
    lines += ["## Fields of their own", "", *_table(alone, schema.get("required", ()), sections), ""]
    return "\n".join(lines).rstrip() + "\n"


def _place(name: str, field: Mapping[str, Any]) -> str:
    return f"{name}.NAME" if "additionalProperties" in field else name


def _section(field: Mapping[str, Any], sections: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the section that a field is, or has many of, else None."""
    options = [field, field.get("additionalProperties") or {}, field.get("items") or {}, *field.get("anyOf", ())]
    options += [option.get("items") or {} for option in options if isinstance(option, Mapping)]
    for option in options:
        if isinstance(option, Mapping) and "$ref" in option:
            found = sections[option["$ref"].rsplit("/", 1)[-1]]
            if "properties" in found:
                return dict(found)
    return None


def _inner(fields: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the tables of sections inside a section."""
    for name, field in fields.items():
        found = _section(field, sections)
        if found is not None:
            table = _table(found["properties"], found.get("required", ()), sections)
            yield [f"### Each of `{name}`", "", found.get("description", ""), "", *table, ""]
            yield from _inner(found["properties"], sections)


def _table(fields: Mapping[str, Any], required: Any, sections: Mapping[str, Any]) -> list[str]:
    rows = ["| field | value | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = "required" if name in required else _shown(field.get("default"))
        meaning = field.get("description", "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_kind(field, sections)} | {default} | {meaning} |")
    return rows


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, (dict, list)):
        return f"`{value}`" if not isinstance(value, dict) else ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(field: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """Returns what a value may be, in a few words."""
    if field.get("title") == STEP:
        return STEP
    if "enum" in field:
        return " ".join(f"`{option}`" for option in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(f, sections) for f in field["anyOf"] if f.get("type") != "null"))
    if "$ref" in field:
        found = sections[field["$ref"].rsplit("/", 1)[-1]]
        return "section" if "properties" in found else _kind(found, sections)
    kinds = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = field.get("type")
    if kind == "array":
        return f"list of {_kind(field['items'], sections)}" if field.get("items") else "list"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"name: {_kind(inner, sections)}" if isinstance(inner, Mapping) else "section"
    if kind is None:
        return "any"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return f"{'path' if field.get('format') == 'path' else kinds[kind]} {', '.join(bounds)}".strip()


if __name__ == "__main__":
    sys.exit(main())
