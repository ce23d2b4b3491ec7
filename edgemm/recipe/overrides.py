"""`--set quantize.search_seconds=5`: any field of a recipe from the command line, without an option of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from edgemm.errors import RecipeError
from edgemm.recipe.fields import fields_below, meant
from edgemm.recipe.problems import dotted

_PART = re.compile(r'"([^"]+)"|([^."]+)')
_FORM = "write KEY=VALUE with a dotted key and a YAML value: evaluate.max_drop=0.02, target=[cpu, rtx-ada]"


def overrides_of(texts: Iterable[str]) -> dict[str, Any]:
    """Returns the nested sections that texts like `evaluate.max_drop=0.02` come to; a later one wins.

    Values are YAML. A key with a dot in it is quoted: `inputs."past.0".modality=text`.

    Raises:
        RecipeError: A text is not of that form, its value no YAML, or its key no field; names the closest.
    """
    result: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        loc = _split(key) if equals else ()
        if not loc:
            raise RecipeError(f"--set {text}: got no key and value.", hint=_FORM)
        _check_key(key, loc)
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            what = " ".join(str(getattr(error, "problem", None) or error).split())
            raise RecipeError(f"--set {key}: '{value}' is no YAML value: {what}.", hint=_FORM) from error
        part = result
        for name in loc[:-1]:
            inner = part.get(name)
            part[name] = inner if isinstance(inner, dict) else {}
            part = part[name]
        part[loc[-1]] = parsed
    return result


def _split(key: str) -> tuple[str, ...]:
    parts, at = [], 0
    while at < len(key):
        found = _PART.match(key, at)
        if found is None:
            return ()
        parts.append(found.group(1) or found.group(2))
        at = found.end()
        if at < len(key):
            if key[at] != "." or at + 1 == len(key):
                return ()
            at += 1
    return tuple(parts)


def _check_key(key: str, loc: tuple[str, ...]) -> None:
    for end in range(1, len(loc) + 1):
        known = fields_below(loc[: end - 1])
        if known is not None and loc[end - 1] not in known:
            raise RecipeError(f"--set {key}: there is no field '{dotted(loc[:end])}'.", hint=meant(loc[:end]))
