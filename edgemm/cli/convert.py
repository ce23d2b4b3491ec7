"""`edgemm convert`: a trained model in, a bundle out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._options import input_fields
from edgemm.cli._output import echo_json, table

if TYPE_CHECKING:
    from edgemm.pipeline import ConvertResult
    from edgemm.recipe import Recipe

EPILOG = """\b
Examples:
  edgemm convert model.pt2 --calib calib.npz --eval eval.npz --label label
  edgemm convert weights.pt --factory net.py:build --calib calib.npz
  edgemm convert m.onnx --modality ids=text --input imu=batch,6,100:float32
  edgemm convert recipe.yaml --force --json
"""


@click.command(epilog=EPILOG, short_help="Convert a trained model into a bundle.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Bundle to write.", show_default="MODEL.edgemm"
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--calib", metavar="PATH", help="Calibration samples: .npz, folder of .npz shards, FILE.py:CLASS.")
@click.option("--eval", "eval_", metavar="PATH", help="Evaluation samples.", show_default="a share of --calib")
@click.option("--label", metavar="NAME", help="Label array in the samples.")
@click.option(
    "--metric",
    metavar="NAME",
    help="accuracy, f1_macro, auroc, mae, mse, agreement, cosine or FILE.py:FUNC.",
    show_default="accuracy with integer labels, mae with float ones, agreement without",
)
@click.option("--output-name", metavar="NAME", help="Output that is scored.", show_default="the first")
@click.option("--max-drop", type=float, help="Largest loss of the metric that may ship.", show_default="0.01")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "int8"]),
    help="auto: int8 where faster and within --max-drop. int8: within --max-drop or fail.",
    show_default="auto",
)
@click.option(
    "--calibrator",
    type=click.Choice(["minmax", "moving-average", "percentile", "entropy", "mse"]),
    help="How the range of a tensor is chosen.",
    show_default="percentile",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "staged", "whole"]),
    help="One engine per stage, or one for all. auto measures; staged unless whole is faster.",
    show_default="auto",
)
@click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE:DTYPE", help="Declare an input.")
@click.option("--modality", "modalities", multiple=True, metavar="INPUT=NAME", help="Group inputs.")
@click.option("--state", "states", multiple=True, metavar="IN=OUT", help="State input fed by an output.")
@click.option("--factory", metavar="FILE.py:FUNC", help="Makes the nn.Module for a state_dict. Runs that code.")
@click.option("--allow-pickle", is_flag=True, help="Load a pickled nn.Module. Runs code from the file.")
@click.option("--opset", type=int, help="ONNX opset.", show_default="the exporter's")
@click.option("--target", type=click.Choice(["cpu"]), help="Device to convert for.", show_default="cpu")
@click.option(
    "--blank-share",
    type=click.FloatRange(0, 0.5),
    help="Share of the calibration samples with one modality blank, per modality: keeps int8 faithful when a "
    "sensor drops out.",
    show_default="0.1",
)
@click.option(
    "--blank",
    "blanks",
    multiple=True,
    metavar="INPUT=WHAT",
    help="What a silent input looks like: zeros, mean, silence:LEVEL, constant:VALUE or FILE.npy.",
    show_default="zeros for float inputs",
)
@click.option("--threads", type=int, help="Threads to measure with.", show_default="the backend's choice")
@click.option("--seed", type=int, help="Seed of the data split.", show_default="0")
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
    recipe = _recipe(model, options)
    output = output or Path(model.name).with_suffix(".edgemm")
    check_output(output, force=force)
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "sklearn"):
        require(package, extra="convert", why="convert a model")
    require("onnxruntime", extra="cpu", why="measure and verify what convert ships")
    from edgemm.cli._progress import RichProgress
    from edgemm.pipeline import convert as run_convert

    with RichProgress() as progress:
        result = run_convert(recipe, output, force=force, progress=progress)
    if as_json:
        echo_json(result.to_json())
    else:
        _print(result)


def _recipe(model: Path, options: dict[str, Any]) -> Recipe:
    from edgemm.export.sniff import sniff
    from edgemm.recipe.loader import build_recipe, load_recipe, merge

    fields = _fields(options)
    if sniff(model) == "recipe":
        return load_recipe(model, fields)
    return build_recipe(merge({"model": {"path": model}}, fields), where="options")


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe fields that the given options set; an option that was not given sets none."""

    def given(value: Any) -> bool:
        return value is not None and value is not False  # 0 is a value

    places = {
        "model": {"factory": "factory", "allow_pickle": "allow_pickle"},
        "data": {"calib": "calib", "eval": "eval_", **{key: key for key in ("label", "seed", "blank_share")}},
        "evaluate": {"metric": "metric", "output": "output_name", "max_drop": "max_drop"},
        "export": {"opset": "opset"},
        "quantize": {"precision": "precision", "calibrator": "calibrator"},
    }
    fields: dict[str, Any] = {
        section: {key: options[name] for key, name in names.items() if given(options[name])}
        for section, names in places.items()
    }
    top = {key: options[key] for key in ("target", "layout", "threads") if options[key] is not None}
    fields = {name: section for name, section in fields.items() if section} | top
    return fields | input_fields(options["inputs"], options["modalities"], options["states"], options["blanks"])


_COLUMNS = ("stage", "modality", "nodes", "parameters", "precision", "float ms", "edge ms")


def _print(result: ConvertResult) -> None:
    rows = result.stage_rows()
    shown = _COLUMNS if any(row[-1] for row in rows) else _COLUMNS[:-2]  # one engine for all has no time per stage
    click.echo(
        "\n" + table(shown, [row[: len(shown)] for row in rows], right=("nodes", "parameters", *_COLUMNS[-2:]))
    )
    click.echo("\n" + "\n".join(result.summary_lines()))
    click.echo(f"{result.path}   next: edgemm profile {shlex.quote(str(result.path))}")
