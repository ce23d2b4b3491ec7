"""`edgemm recipe`: lists recipes, shows them with all defaults, checks them, begins one for a new model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from edgemm.errors import did_you_mean

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


class RecipeGroup(click.Group):
    """Loads a verb's module when it is called, so that `--help` needs no optional package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the verbs in order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command called `cmd_name`, or None."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolves the verb; a mistyped one is answered with the closest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if Path(args[0]).suffix in (".yaml", ".yml"):
                hint = f"did you mean `edgemm recipe show {args[0]}`?"
            else:
                hint = did_you_mean(args[0], VERBS, f"verbs: {', '.join(VERBS)}")
            raise click.UsageError(f"no verb '{args[0]}'. {hint}", ctx=ctx) from error


@click.group(cls=RecipeGroup, epilog=EPILOG, short_help="List, show, check or begin a recipe.")
def recipe() -> None:
    """List, show, check or begin a recipe: the YAML file that says what to convert, and how.

    A recipe fills the same fields as the options of `edgemm convert`, and more. Paths in it are relative to its
    own folder.
    """
