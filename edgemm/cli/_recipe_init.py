"""`edgemm recipe init`: a recipe for a model of one's own, with everything filled in that can be told from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._recipe import require_convert, require_recipes

if TYPE_CHECKING:
    from edgemm.data import Source

EPILOG = """\b
Examples:
  edgemm recipe init model.pt2 --calib calib.npz -o mine.yaml
  edgemm recipe init weights.pt --factory net.py:build --calib calib.npz --label mood
  edgemm recipe init model.onnx --modality input_ids=text --modality attention_mask=text
"""

_RAW = "If sensors give them so: inputs.NAME.preprocess says what becomes of them (docs/preprocessing.md)."
"""What to do about samples that do not fit the model."""


@click.command(epilog=EPILOG, short_help="Begin a recipe for your own model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", metavar="PATH", help="Calibration samples: .npz, folder of .npz shards, FILE.py:CLASS.")
@click.option("--eval", "eval_", metavar="PATH", help="Evaluation samples.", show_default="a share of --calib")
@click.option("--label", metavar="NAME", help="Label array in the samples.", show_default="told by its name")
@click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE:DTYPE", help="Declare an input.")
@click.option("--modality", "modalities", multiple=True, metavar="INPUT=NAME", help="Group inputs.")
@click.option("--state", "states", multiple=True, metavar="IN=OUT", help="State input fed by an output.")
@click.option("--factory", metavar="FILE.py:FUNC", help="Makes the nn.Module for a state_dict. Runs that code.")
@click.option("--allow-pickle", is_flag=True, help="Load a pickled nn.Module. Runs code from the file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Recipe to write.", show_default="MODEL.yaml"
)
@click.option("--force", is_flag=True, help="Replace an existing recipe.")
@click.option("--json", "as_json", is_flag=True, help="What was found as one JSON object on stdout.")
def init(model: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Begin a recipe for MODEL: its inputs with their modalities and shapes, its states, the labels, the metric.

    The model is exported as `edgemm convert` does it. All other fields are in the file too, commented out, with
    their defaults and what they mean. It converts as it is: edgemm convert FILE. Samples as the sensors give them
    need inputs.NAME.preprocess first; that is said.
    """
    from edgemm.cli._output import echo_json, refuse_to_overwrite, write_file

    output = output or Path(model.name).with_suffix(".yaml")
    refuse_to_overwrite(output, force=force)
    require_recipes()
    require_convert()
    from edgemm.recipe.write import commented_yaml

    fields, notes = _fields(model, options, output.resolve().parent)
    head = [
        f"How to convert {model.name}. Check and convert it:",
        f"  edgemm recipe check {output.name}",
        f"  edgemm convert {output.name}",
        "To set a field take away the # at the start of its line, and of that of its section.",
        "Paths are relative to this file.",
        "For completion in an editor: edgemm recipe schema -o recipe.schema.json",
    ]
    text = commented_yaml(fields, head, notes)
    write_file(output, lambda file: _write(file, text), force=force)
    if as_json:
        echo_json({"file": str(output), "recipe": fields, "notes": notes})
        return
    for name, section in fields["inputs"].items():
        because = notes[f"inputs.{name}.modality"].removeprefix("Because: ").rstrip(".")
        click.echo(f"{name}: {section['modality']} ({because})")
    if options["calib"] and "data.calib" in notes:
        click.echo(f"note: {notes['data.calib']}")
    click.echo(f"{output}   next: edgemm recipe check {output}")


def _write(file: Any, text: str) -> None:
    file.write(text.encode())


def _fields(model: Path, options: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the fields that model and samples tell, and what to say of them: dotted field -> sentence."""
    from edgemm.cli._description import describe_model
    from edgemm.cli._options import input_fields
    from edgemm.cli._progress import RichProgress
    from edgemm.data import open_samples
    from edgemm.errors import DataError, EdgemmError, RecipeError
    from edgemm.export.sniff import RECIPE, sniff
    from edgemm.recipe.loader import build_recipe, merge

    if sniff(model) == RECIPE:
        raise RecipeError(f"{model} is a recipe already.", hint=f"see what it says: edgemm recipe show {model}")
    section = {k: options[k] for k in ("factory", "allow_pickle") if options[k]}
    data = {"calib": options["calib"], "eval": options["eval_"], "label": options["label"]}
    given: dict[str, Any] = {
        "model": {"path": str(model), **section},
        "data": {k: v for k, v in data.items() if v},
    }
    declared = input_fields(options["inputs"], options["modalities"], options["states"])

    def described(sections: Mapping[str, Any]) -> dict[str, Any]:
        return describe_model(model, build_recipe(merge(sections, declared), where="options"), progress)

    named = options["calib"] or options["eval_"]
    source = open_samples(named) if named else None
    misfit: DataError | None = None
    with RichProgress() as progress:
        try:
            report = described(given)
        except DataError as error:
            if not options["calib"]:
                raise
            misfit = error
            try:
                report = described({"model": given["model"]})
            except EdgemmError:
                raise misfit from None  # the model alone does not tell its inputs
    inputs, notes = _inputs(report)
    if misfit is not None:
        notes["data.calib"] = f"These samples are not what the model takes: {misfit} {_RAW}"
    fields: dict[str, Any] = {"model": _below(given["model"], folder, ("path", "factory")), "inputs": inputs}
    if report["states"]:
        fields["states"] = {s["input"]: s["output"] for s in report["states"]}
    fields["data"] = _below(given["data"], folder, ("calib", "eval"))
    _guess_label(fields, notes, given["data"].get("label"), source, report)
    return {k: v for k, v in fields.items() if v}, notes


def _inputs(report: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    states = {s["input"] for s in report["states"]}
    inputs: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for spec in report["inputs"]:
        if spec["name"] in states:
            continue
        dtype = {} if spec["dtype"] == "float32" else {"dtype": spec["dtype"]}
        inputs[spec["name"]] = {"modality": spec["modality"], "shape": list(spec["shape"]), **dtype}
        notes[f"inputs.{spec['name']}.modality"] = f"Because: {spec.get('reason', 'declared')}."
    return inputs, notes


def _below(section: Mapping[str, Any], folder: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns a section with its paths relative to the recipe's folder."""
    from edgemm.recipe.paths import called_from

    def moved(value: str) -> str:
        file, colon, name = value.partition(":")
        if colon and not file.endswith(".py"):
            return value  # package.module:FUNC
        return f"{called_from(Path(file).resolve(), folder)}{colon}{name}"

    return {key: moved(value) if key in keys else value for key, value in section.items()}


_LABELS = ("label", "labels", "target", "targets", "y", "class", "classes", "truth")


def _guess_label(
    fields: dict[str, Any],
    notes: dict[str, str],
    given: str | None,
    source: Source | None,
    report: Mapping[str, Any],
) -> None:
    """Adds the label array and the metric, where the samples tell: one whole number or float per sample."""
    if source is None:
        notes["data.calib"] = "Without samples nothing becomes integer."
        return
    others = [n for n in source.names if n not in {i["name"] for i in report["inputs"]}]
    label = given or next((n for n in _LABELS if n in others), None)
    if label is None or label not in source.names:
        if others:
            notes["data.label"] = f"Arrays that are no inputs: {', '.join(others)}."
        return
    metric = _metric(source, label, report)
    if metric is None and not given:
        notes["data.label"] = f"'{label}' is not one class or number per sample: give evaluate.metric with it."
        return
    fields["data"]["label"] = label
    if metric is not None:
        fields["evaluate"] = {"metric": metric}


def _metric(source: Source, label: str, report: Mapping[str, Any]) -> str | None:
    """Returns the metric for a label of one number per sample and an output that fits it; None for others."""
    import numpy as np

    row = np.asarray(source[0][label])
    output = report["outputs"][0]
    rank = len(output["shape"]) - (report["batch"] is not None)
    if row.ndim == 0 and np.issubdtype(row.dtype, np.integer) and rank == 1 and output["shape"][-1] != 1:
        return "accuracy"
    fits = np.issubdtype(row.dtype, np.floating) and [d for d in row.shape if d != 1] == [
        d for d in output["shape"][len(output["shape"]) - rank :] if d != 1
    ]
    return "mae" if fits else None
