"""`edgemm convert`: a trained model in, a bundle out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.pipeline import ConvertResult
    from edgemm.recipe import Recipe

EPILOG = """\b
Examples:
  edgemm convert model.pt2 --calib calib.npz --eval eval.npz --label label -o model.edgemm
  edgemm convert weights.pt --factory net.py:build --input image=batch,3,64,64 --input gyro=batch,6,100
  edgemm convert clip.onnx --modality input_ids=text --modality attention_mask=text --precision fp32
  edgemm convert recipe.yaml --force --json
"""


@click.command(epilog=EPILOG)
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
@click.option("--threads", type=int, help="Threads to measure with.", show_default="the backend's choice")
@click.option("--seed", type=int, help="Seed of the data split.", show_default="0")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def convert(model: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Convert a trained fusion model into a bundle.

    MODEL is a torch.export .pt2, a TorchScript archive, a state_dict with --factory, an .onnx file, or a
    recipe in YAML. The kind is told from the content of the file.
    """
    from edgemm._optional import require

    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml", "sklearn"):
        require(package, extra="convert", why="convert a model")
    require("onnxruntime", extra="cpu", why="measure and verify what convert ships")
    from edgemm.cli._progress import RichProgress
    from edgemm.pipeline import convert as run_convert

    recipe = _recipe(model, options)
    output = output or Path(model.name).with_suffix(".edgemm")
    with RichProgress() as progress:
        result = run_convert(recipe, output, force=force, progress=progress)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
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
    from edgemm.export.signature import parse_input

    inputs: dict[str, dict[str, Any]] = {}
    for text in options["inputs"]:
        spec = parse_input(text)
        inputs[spec.name] = {"shape": spec.shape, "dtype": spec.dtype}
    for text in options["modalities"]:
        name, value = _pair("--modality", text, "INPUT=NAME")
        inputs.setdefault(name, {})["modality"] = value
    states = dict(_pair("--state", text, "IN=OUT") for text in options["states"])
    places = {
        "model": {"factory": "factory", "allow_pickle": "allow_pickle"},
        "data": {"calib": "calib", "eval": "eval_", "label": "label", "seed": "seed"},
        "evaluate": {"metric": "metric", "output": "output_name", "max_drop": "max_drop"},
        "export": {"opset": "opset"},
        "quantize": {"precision": "precision", "calibrator": "calibrator"},
    }
    fields: dict[str, Any] = {
        section: {key: options[name] for key, name in names.items() if options[name] not in (None, False)}
        for section, names in places.items()
    }
    top = {key: options[key] for key in ("target", "layout", "threads") if options[key] is not None}
    fields = {name: section for name, section in fields.items() if section} | top
    return fields | ({"inputs": inputs} if inputs else {}) | ({"states": states} if states else {})


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"got '{text}', expected {form}.", param_hint=option)
    return name, value


def _print(result: ConvertResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    data = result.to_json()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "modality", "nodes", "parameters", "precision", "float ms", "edge ms"):
        table.add_column(
            column, justify="right" if column in {"nodes", "parameters"} or "ms" in column else "left"
        )
    for row in result.stage_rows():
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print()
    for line in result.summary_lines():
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{data['bundle']}   next: edgemm profile {data['bundle']}", highlight=False, soft_wrap=True)
