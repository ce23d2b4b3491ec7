"""`edgemm convert`: a trained model in, a bundle out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._output import echo_json, table
from edgemm.cli._recipe import read_recipe, recipe_options, require_convert

if TYPE_CHECKING:
    from edgemm.pipeline import ConvertResult

EPILOG = """\b
Examples:
  edgemm convert model.pt2 --calib calib.npz --eval eval.npz --label label
  edgemm convert weights.pt --factory net.py:build --calib calib.npz
  edgemm convert m.onnx --modality ids=text --input imu=batch,6,100:float32
  edgemm convert recipe.yaml --force --json
  edgemm convert model.pt2 --calib calib.npz --target cpu --target rtx-ampere
  edgemm convert model.pt2 --calib calib.npz --label label --modality-report
"""


@click.command(epilog=EPILOG, short_help="Convert a trained model into a bundle.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Bundle to write.", show_default="MODEL.edgemm"
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@recipe_options
@click.option(
    "--learn-missing",
    multiple=True,
    metavar="MODALITY",
    help="Train what stands for a missing modality behind its encoder, repeatable; kept where it beats the mean. "
    "Not for models with states.",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="NAME=MODEL",
    help="Ship another head, repeatable: a trained model that takes what some encoders give, for streams that "
    "fill the other modalities with head:NAME.",
)
@click.option(
    "--modality-report",
    is_flag=True,
    help="Score what ships with every subset of the modalities and every fill, on the evaluation samples.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def convert(model: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Convert a trained fusion model into a bundle.

    MODEL is a torch.export .pt2, a TorchScript archive, a state_dict with --factory, an .onnx file, or a
    recipe in YAML. The kind is told from the content of the file.
    """
    from edgemm._optional import require
    from edgemm.bundle import check_output

    for package in ("pydantic", "yaml"):
        require(package, extra="convert", why="convert a model")
    # What can be answered without torch is answered before it loads.
    recipe = read_recipe(model, options)
    output = output or Path(model.name).with_suffix(".edgemm")
    check_output(output, force=force)
    require_convert()
    from edgemm.cli._progress import RichProgress
    from edgemm.pipeline import convert as run_convert

    with RichProgress() as progress:
        result = run_convert(recipe, output, force=force, progress=progress)
    if as_json:
        echo_json(result.to_json())
    else:
        _print(result)


def _modality_table(report: Mapping[str, Any]) -> str:
    from edgemm.pipeline.modalities import report_table

    header, rows = report_table(report)
    against = "" if report["compared_with"] == "labels" else f" with {report['compared_with']}"
    title = f"{report['metric']}{against} by missing modality, {report['samples']:,} evaluation samples"
    return f"{title}\n{table(header, rows, right=header[2:])}"


_COLUMNS = ("stage", "modality", "nodes", "parameters", "precision", "float ms", "edge ms")


def _print(result: ConvertResult) -> None:
    rows = result.stage_rows()
    shown = _COLUMNS if any(row[-1] for row in rows) else _COLUMNS[:-2]  # one engine for all has no time per stage
    others = result.other_targets()
    names = [result.shipped.target if others and c == "precision" else c for c in shown]
    cells = [(*r[: len(shown)], *(result.precision_of(v, r[0]) for v in others)) for r in rows]
    columns = (*names, *(v.target for v in others))
    click.echo("\n" + table(columns, cells, right=("nodes", "parameters", *_COLUMNS[-2:])))
    click.echo("\n" + "\n".join(result.summary_lines()))
    if result.modalities is not None:
        click.echo("\n" + _modality_table(result.modalities))
    elsewhere = any("module" in e.options for e in result.shipped.engines)
    verb = "inspect" if elsewhere else "profile"
    click.echo(f"{result.path}   next: edgemm {verb} {shlex.quote(str(result.path))}")
