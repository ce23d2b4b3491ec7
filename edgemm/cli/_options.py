"""What options say: of a model's inputs as fields of a recipe, and which variant of which bundle."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


class AboveZero(click.FloatRange):
    """A number above 0 that is neither infinite nor NaN, which click's own range takes."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number.

        Raises:
            click.BadParameter: It is none, or out of range.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"got '{value}', expected a number above 0.", param, ctx)
        return number


def input_fields(
    inputs: Iterable[str], modalities: Iterable[str], states: Iterable[str], blanks: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the recipe sections `inputs` and `states`; a section that nothing was given for is left out.

    Args:
        inputs: Texts of `--input NAME=SHAPE:DTYPE`.
        modalities: Texts of `--modality INPUT=NAME`.
        states: Texts of `--state IN=OUT`.
        blanks: Texts of `--blank INPUT=WHAT`.

    Raises:
        click.BadParameter: A text is not of its form.
        RecipeError: A shape or dtype is none.
    """
    from edgemm.export.signature import parse_input

    sections: dict[str, dict[str, Any]] = {}
    for text in inputs:
        spec = parse_input(text)
        sections[spec.name] = {"shape": spec.shape, "dtype": spec.dtype}
    for text in modalities:
        name, value = pair("--modality", text, "INPUT=NAME")
        sections.setdefault(name, {})["modality"] = value
    for text in blanks:
        name, value = pair("--blank", text, "INPUT=WHAT")
        sections.setdefault(name, {})["blank"] = value
    kept = dict(pair("--state", text, "IN=OUT") for text in states)
    return ({"inputs": sections} if sections else {}) | ({"states": kept} if kept else {})


def pair(option: str, text: str, form: str) -> tuple[str, str]:
    """Returns both sides of `text`.

    Raises:
        click.BadParameter: It is not of the form `form`.
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"got '{text}', expected {form}.", param_hint=option)
    return name, value


def path_and_variant(text: str, variant: str | None) -> tuple[Path, str | None]:
    """Returns path and variant of `PATH` or `PATH:VARIANT`; a path that exists is taken whole.

    Raises:
        click.BadParameter: Two different variants are named.
    """
    path, colon, name = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), variant
    if variant is not None and variant != name:
        raise click.BadParameter(f"'{text}' names '{name}', --variant names '{variant}'.", param_hint="--variant")
    return Path(path), name
