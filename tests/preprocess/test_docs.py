"""docs/preprocessing.md lists every step and every option as they are, and its recipes are valid."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgemm.bake.registry import EMITTERS
from edgemm.preprocess import STEPS
from edgemm.preprocess.registry import step_class
from edgemm.recipe import build_recipe

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "preprocessing.md").read_text()


def shown(value: object) -> str:
    """Returns a default as YAML has it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, float) and value == 1 / 255:
        return "1/255"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def row(name: str) -> str:
    """Returns the row of a step in the table."""
    cls: Any = step_class(name)
    options = []
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING
        options.append(f"`{field.name}`" if required else f"`{field.name}: {shown(field.default)}`")
    first = (cls.__doc__ or "").splitlines()[0]
    return f"| `{name}` | {first} | {', '.join(options)} | {'graph' if name in EMITTERS else 'host'} |"


@pytest.mark.parametrize("name", STEPS)
def test_every_step_has_its_row(name: str) -> None:
    assert row(name) in TEXT.splitlines()


def test_every_row_is_of_a_step() -> None:
    assert re.findall(r"^\| `(\w+)` \|", TEXT.split("## Steps")[1], re.MULTILINE) == list(STEPS)


def test_recipes_are_valid() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        build_recipe({"model": {"path": "model.pt2"}, **yaml.safe_load(block)}, where="docs/preprocessing.md")


@pytest.mark.parametrize("name", STEPS)
def test_every_option_is_described_where_it_is_defined(name: str) -> None:
    cls: Any = step_class(name)
    described = "".join(c.__doc__ or "" for c in cls.__mro__)
    for field in dataclasses.fields(cls):
        assert re.search(rf"^\s+{field.name}: ", described, re.MULTILINE), field.name


if __name__ == "__main__":
    print("\n".join(map(row, STEPS)))
