"""`edgemm recipe list`, `show` and `schema`: what recipes there are, what one says, what one may say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._recipe import require_recipes, set_option

if TYPE_CHECKING:
    from edgemm.recipe import Recipe

LONGEST = 56
"""Characters of a cell of the list; `--json` has all."""

LIST_EPILOG = """\b
Examples:
  edgemm recipe list
  edgemm recipe list recipes --json
"""


@click.command("list", epilog=LIST_EPILOG, short_help="List the recipes of a folder.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("recipes"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def list_recipes(folder: Path, as_json: bool) -> None:
    """List the recipes in FOLDER (default: ./recipes) with what each shows: task, modalities, fusion, data."""
    from edgemm.cli._output import echo_json, table, warn
    from edgemm.errors import RecipeError

    require_recipes()
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}.", hint="name a folder: edgemm recipe list FOLDER")
    rows = [_row(path) for path in sorted(folder.glob("*.y*ml"))]
    if as_json:
        echo_json({"folder": str(folder), "recipes": rows})
        return
    if not rows:
        raise RecipeError(
            f"there is no recipe (*.yaml) in {folder}.", hint="begin one: edgemm recipe init MODEL -o FILE.yaml"
        )
    columns = ("name", "task", "modalities", "fusion", "data")
    cells = [[_cell(row, column) for column in columns] for row in rows]
    click.echo(table(columns, cells))
    for row in rows:
        if row["error"] is not None:
            warn(row["error"])


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    text = (", ".join(value) if isinstance(value, list) else value) or "-"
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
    return f"{text} (synthetic)" if column == "data" and row["synthetic"] else text


def _row(path: Path) -> dict[str, Any]:
    """Returns what the list tells of one file; what is no valid recipe has an `error`."""
    from edgemm.errors import RecipeError
    from edgemm.recipe.loader import load_recipe

    row: dict[str, Any] = {"name": path.stem, "file": str(path), "title": None}
    row |= dict.fromkeys(("task", "fusion", "data", "source", "error")) | {"synthetic": False, "modalities": []}
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        return row | {"error": str(error)}
    row["modalities"] = list(dict.fromkeys(i.modality for i in recipe.inputs.values() if i.modality))
    return row | (recipe.about.model_dump() if recipe.about is not None else {})


SHOW_EPILOG = """\b
Examples:
  edgemm recipe show mine.yaml
  edgemm recipe show mine.yaml --set evaluate.max_drop=0.02 -o other/mine.yaml
  edgemm recipe show mine.yaml --json
"""


@click.command(epilog=SHOW_EPILOG, short_help="Show a recipe with all its defaults.")
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Recipe to write.", show_default="standard output"
)
@click.option("--force", is_flag=True, help="Replace an existing recipe.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of YAML.")
def show(file: Path, sets: tuple[str, ...], output: Path | None, force: bool, as_json: bool) -> None:
    """Show what FILE comes to: every field with its value, the defaults filled in, and what it means.

    The output is a recipe itself, which converts from wherever it is saved: paths are absolute, or with -o
    relative to the file that is written.
    """
    from edgemm.cli._output import echo_json, refuse_to_overwrite, write_file
    from edgemm.recipe.write import whole_yaml

    if output is not None and as_json:
        raise click.UsageError("--json goes to standard output, a recipe to -o: give one of them.")
    require_recipes()
    if output is not None:
        refuse_to_overwrite(output, force=force)
    found = _whole(file, sets, output)
    if as_json:
        echo_json(found.model_dump(mode="json"))
        return
    where = "absolute; -o FILE makes them relative to FILE" if output is None else "relative to this file"
    text = whole_yaml(found, [f"{file} with every default; paths are {where}."])
    if output is None:
        click.echo(text, nl=False)
        return
    write_file(output, lambda out: _write(out, text), force=force)
    click.echo(f"{output}   next: edgemm recipe check {output}")


def _whole(file: Path, sets: tuple[str, ...], output: Path | None) -> Recipe:
    """Returns the recipe with absolute paths, or with those relative to `output`; those of `sets` are of here."""
    from dataclasses import replace

    from edgemm.recipe.loader import judge
    from edgemm.recipe.overrides import overrides_of
    from edgemm.recipe.paths import relative_to, resolve
    from edgemm.recipe.problems import as_error
    from edgemm.recipe.source import read_text

    text = read_text(file)
    fields = resolve(text.fields, file.absolute().parent)
    given = resolve(overrides_of(sets), Path.cwd())
    root = Path("/") if output is None else output.absolute().parent
    found, problems = judge(replace(text, fields=relative_to(fields, root)), relative_to(given, root))
    if found is None or problems:
        raise as_error(problems)
    return found


SCHEMA_EPILOG = """\b
Examples:
  edgemm recipe schema -o recipe.schema.json
  edgemm recipe schema | jq '."$defs".QuantizeSection'
"""


@click.command(epilog=SCHEMA_EPILOG, short_help="Write the JSON Schema of recipes, for editors.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.", show_default="standard output"
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def schema(output: Path | None, force: bool) -> None:
    """Write the JSON Schema of recipes: what fields there are, what they mean, and what values they take.

    Editors complete and check recipes by it: the first line of a recipe that edgemm writes,
    `# yaml-language-server: $schema=recipe.schema.json`, names the file.
    """
    from edgemm.cli._output import write_file
    from edgemm.recipe import write

    require_recipes()
    text = json.dumps(write.schema(), indent=1, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    write_file(output, lambda file: _write(file, text), force=force)
    click.echo(f"{output}   next: put `{write.hint_line()}` at the top of a recipe beside it")


def _write(file: Any, text: str) -> None:
    file.write(text.encode())
