"""`edgemm recipe check`: everything that is wrong with a recipe at once, each with its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._recipe import require_convert, require_recipes, set_option

if TYPE_CHECKING:
    from edgemm.recipe import Recipe
    from edgemm.recipe.problems import Problem
    from edgemm.recipe.source import Loc

EPILOG = """\b
Examples:
  edgemm recipe check mine.yaml
  edgemm recipe check recipes/*.yaml --no-model
  edgemm recipe check mine.yaml --set target=jetson-orin-nano --json
"""


@click.command(epilog=EPILOG, short_help="Find everything that is wrong with recipes.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@set_option
@click.option(
    "--model/--no-model",
    "open_model",
    default=True,
    show_default=True,
    help="Open model and samples, too: names in the recipe must be names in them.",
)
@click.option("--run-code", is_flag=True, help="Also open what runs code: factories, pickles, readers, metrics.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def check(files: tuple[Path, ...], sets: tuple[str, ...], open_model: bool, run_code: bool, as_json: bool) -> None:
    """Find everything that is wrong with recipes: unknown fields, wrong values, files that are not there.

    The model is exported as `edgemm convert` does it, nothing is written, and what names an input, a modality, a
    stage or a node must find one; fields that are wrong by themselves are left out of that. Each finding is told
    as FILE:LINE:COLUMN. Exit code 1 with one, 0 without.
    """
    from edgemm.cli._output import count, echo_json
    from edgemm.recipe.overrides import overrides_of
    from edgemm.recipe.problems import in_order

    require_recipes()
    overrides = overrides_of(sets)
    found: list[dict[str, Any]] = []
    total = 0
    for file in files:
        notes: list[str] = []
        recipe, lost, problems = _read(file, overrides)
        if recipe is not None and open_model:
            more, notes = _open(recipe, lost, file, run_code=run_code)
            problems = in_order([*problems, *more])
        told = [problem.to_json() for problem in problems]
        found.append({"file": str(file), "ok": not problems, "problems": told, "notes": notes})
        total += len(problems)
        if not as_json:
            _print(file, problems, notes)
    if as_json:
        echo_json({"ok": total == 0, "files": found})
    elif len(files) > 1:
        click.echo(f"{count(len(files), 'recipe')}, {count(total, 'problem')}")
    if total:
        click.get_current_context().exit(1)


def _read(file: Path, overrides: dict[str, Any]) -> tuple[Recipe | None, frozenset[Loc], list[Problem]]:
    """Returns what the file alone tells: the recipe with its paths resolved, and what is wrong with it.

    Of a recipe with wrong fields it is the rest, with the fields that it lacks or whose files are not there; None
    where there is no model.
    """
    from dataclasses import replace

    from edgemm.errors import RecipeError
    from edgemm.recipe.loader import judge, merge
    from edgemm.recipe.paths import missing_files, resolve
    from edgemm.recipe.problems import in_order, unreadable
    from edgemm.recipe.salvage import salvage
    from edgemm.recipe.source import read_text

    try:
        text = read_text(file)
    except RecipeError as error:
        return None, frozenset(), [unreadable(file, error)]
    fields = resolve(text.fields, file.parent)
    recipe, problems = judge(replace(text, fields=fields), overrides)
    missing = missing_files(text, file.parent)
    lost: frozenset[Loc] = frozenset(tuple(problem.field.split(".")) for problem in missing)
    if recipe is None:
        recipe, wrong = salvage(merge(fields, overrides))
        lost |= wrong
    if any(loc[0] == "model" for loc in lost):
        recipe = None
    return recipe, lost, in_order([*problems, *missing])


def _open(recipe: Recipe, lost: frozenset[Loc], file: Path, *, run_code: bool) -> tuple[list[Problem], list[str]]:
    from edgemm.errors import MissingExtraError

    try:
        require_convert()
    except MissingExtraError as error:
        if not lost:
            raise
        return [], [f"the model is not opened: {error}"]
    from edgemm.cli._progress import RichProgress
    from edgemm.pipeline.recipe_check import check_names
    from edgemm.recipe.source import read_text

    with RichProgress() as progress:
        return check_names(recipe, read_text(file), progress, run_code=run_code, lost=lost)


def _print(file: Path, problems: Sequence[Problem], notes: Sequence[str]) -> None:
    for problem in problems:
        click.echo(
            f"{click.style(problem.where, bold=True)}: {problem.field}{': ' if problem.field else ''}", nl=False
        )
        click.echo(f"{problem.message}\n    {problem.hint}")
    if not problems:
        click.echo(f"{file}: ok" + (f" ({'; '.join(notes)})" if notes else ""))
    else:
        for note in notes:
            click.echo(f"{file}: note: {note}")
