"""`edgemm recipe`: lists recipes, shows them with all defaults, checks them, begins one for a new model."""

from __future__ import annotations

from pathlib import Path

import click

from edgemm.cli._lazy import LazyGroup

VERBS = {
    "list": "edgemm.cli._recipe_list:list_recipes",
    "show": "edgemm.cli._recipe_list:show",
    "init": "edgemm.cli._recipe_init:init",
    "check": "edgemm.cli._recipe_check:check",
    "schema": "edgemm.cli._recipe_list:schema",
}

EPILOG = """\b
Examples:
  edgemm recipe init model.pt2 --calib calib.npz -o mine.yaml
  edgemm recipe check mine.yaml
  edgemm recipe show mine.yaml --set quantize.search_seconds=5
  edgemm recipe list recipes
  edgemm convert mine.yaml
"""


def _guess(word: str) -> str:
    """Returns what was meant by the name of a recipe in the place of a verb."""
    return f"did you mean `edgemm recipe show {word}`?" if Path(word).suffix in (".yaml", ".yml") else ""


@click.group(
    cls=LazyGroup, verbs=VERBS, guess=_guess, epilog=EPILOG, short_help="List, show, check or begin a recipe."
)
def recipe() -> None:
    """List, show, check or begin a recipe: the YAML file that says what to convert, and how.

    A recipe fills the same fields as the options of `edgemm convert`, and more. Paths in it are relative to its
    own folder.
    """
