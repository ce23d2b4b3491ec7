"""Reads a recipe from YAML and turns pydantic's complaints into one EdgemmError."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgemm.errors import RecipeError, did_you_mean
from edgemm.recipe.schema import Recipe


def build_recipe(fields: Mapping[str, Any], *, where: str) -> Recipe:
    """Returns the validated recipe.

    Args:
        fields: Nested dict of sections.
        where: What the fields came from, for the error ("options", or a file name).

    Raises:
        RecipeError: A field is unknown, missing or out of range; the first one is named.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "recipe"
        message = first["msg"].removeprefix("Value error, ")
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise RecipeError(f"{where}: {place}: {message}{more}.", hint=_hint(first)) from error


def _hint(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = field.annotation if field is not None else None
        known = list(getattr(section, "model_fields", {}))
        return did_you_mean(
            str(error["loc"][-1]), known, f"fields here: {', '.join(known)}" if known else "remove it"
        )
    if "data.calib" in error["msg"]:
        return "give calibration samples with --calib, or choose --precision auto or fp32"
    return f"got {error['input']!r}; see `edgemm convert --help`"


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Returns the recipe at `path` with `overrides` (a nested dict) laid over it; relative paths are its own.

    Raises:
        RecipeError: The file is no YAML mapping or fails validation.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"{path}: no readable YAML: {error}", hint="a recipe is a YAML mapping of sections"
        ) from error
    if not isinstance(fields, dict):
        raise RecipeError(
            f"{path}: got a {type(fields).__name__}, expected a mapping of sections.",
            hint="start with `model: {path: model.pt2}`",
        )
    return build_recipe(merge(_resolve(fields, path.parent), overrides or {}), where=path.name)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over` laid over it, section by section."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def _resolve(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a recipe are relative to the recipe's folder; `FILE.py:NAME` likewise."""

    def at(section: str, key: str) -> None:
        part = fields.get(section)
        if not isinstance(part, dict) or not isinstance(part.get(key), str):
            return
        file, colon, name = part[key].partition(":")
        is_path = not colon or file.endswith(".py")
        if is_path and not Path(file).is_absolute():
            fields[section] = part | {key: f"{folder / file}{colon}{name}"}
            part = fields[section]

    for section, key in (
        ("model", "path"),
        ("model", "factory"),
        ("data", "calib"),
        ("data", "eval"),
        ("quantize", "plan"),
    ):
        at(section, key)
    metric = (fields.get("evaluate") or {}).get("metric") if isinstance(fields.get("evaluate"), dict) else None
    if isinstance(metric, str) and ".py:" in metric:
        at("evaluate", "metric")
    inputs = fields.get("inputs")
    if isinstance(inputs, dict):
        fields["inputs"] = {name: _with_blank_file(section, folder) for name, section in inputs.items()}
    return fields


def _with_blank_file(section: Any, folder: Path) -> Any:
    blank = section.get("blank") if isinstance(section, dict) else None
    if isinstance(blank, dict) and isinstance(blank.get("file"), str):
        blank = blank["file"]
    if not isinstance(blank, str) or not blank.endswith(".npy"):
        return section
    return section | {"blank": str(folder / blank)}  # an absolute path stays as it is
