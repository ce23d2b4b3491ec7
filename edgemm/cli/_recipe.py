"""The options that fill a recipe, shared by the verbs that need one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgemm.cli._options import input_fields, pair

if TYPE_CHECKING:
    from edgemm.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option(
        "--calib",
        metavar="PATH",
        help="Calibration samples: .npz, folder, .csv manifest, recording, .yaml description, FILE.py:CLASS.",
    ),
    click.option("--eval", "eval_", metavar="PATH", help="Evaluation samples.", show_default="a share of --calib"),
    click.option("--label", metavar="NAME", help="Label array in the samples."),
    click.option(
        "--metric",
        metavar="NAME",
        help="accuracy, f1_macro, auroc, mae, mse, agreement, cosine or FILE.py:FUNC.",
        show_default="accuracy with integer labels, mae with float ones, agreement without",
    ),
    click.option("--output-name", metavar="NAME", help="Output that is scored.", show_default="the first"),
    click.option("--max-drop", type=float, help="Largest loss of the metric that may ship.", show_default="0.01"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "fp16", "int8", "fp8", "int4"]),
        help="auto: integers, fp16 or bf16 where faster and within --max-drop. int8: or fail. fp32: float. "
        "NVIDIA targets: fp16 without integers; fp8 (SM 89 or later) or fail; int4 weights alone, or fail.",
        show_default="auto",
    ),
    click.option(
        "--calibrator",
        type=click.Choice(["minmax", "moving-average", "percentile", "entropy", "mse", "auto"]),
        help="How the range of a tensor is chosen. auto: by the smallest error of each tensor.",
        show_default="mse",
    ),
    click.option(
        "--layout",
        type=click.Choice(["auto", "staged", "whole", "both"]),
        help="One engine per stage, one for all, or both: one for all when everything is new. auto measures; "
        "staged unless whole is faster.",
        show_default="auto",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "onnxruntime", "openvino"]),
        help="What runs the graphs. auto measures what is installed.",
        show_default="auto",
    ),
    click.option(
        "--objective",
        type=click.Choice(["latency", "size", "accuracy"]),
        help="Within --max-drop: the fastest, the smallest, or the most accurate inside --max-latency-ms.",
        show_default="latency",
    ),
    click.option("--max-latency-ms", type=float, help="Latency to keep to on this machine.", show_default="none"),
    click.option("--search-seconds", type=float, help="Time for the search of a plan.", show_default="60"),
    click.option(
        "--plan",
        type=click.Path(path_type=Path),
        help="Apply a plan that edgemm plan --save wrote, instead of searching.",
    ),
    click.option("--no-cache", is_flag=True, help="Measure everything again; keep nothing."),
    click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE:DTYPE", help="Declare an input."),
    click.option("--modality", "modalities", multiple=True, metavar="INPUT=NAME", help="Group inputs."),
    click.option("--state", "states", multiple=True, metavar="IN=OUT", help="State input fed by an output."),
    click.option(
        "--factory", metavar="FILE.py:FUNC", help="Makes the nn.Module for a state_dict. Runs that code."
    ),
    click.option("--allow-pickle", is_flag=True, help="Load a pickled nn.Module. Runs code from the file."),
    click.option("--opset", type=int, help="ONNX opset.", show_default="the exporter's"),
    click.option(
        "--target",
        "target",
        multiple=True,
        metavar="NAME",
        help="Device to convert for, repeatable: a name of edgemm targets; auto: this machine.",
        show_default="cpu",
    ),
    click.option(
        "--profile",
        "profiles",
        multiple=True,
        metavar="DIM=MIN:OPT:MAX",
        help="Sizes of a dynamic dimension that TensorRT engines accept.",
        show_default="from the samples; 1 to 8 for the batch",
    ),
    click.option(
        "--blank-share",
        type=click.FloatRange(0, 0.5),
        help="Share of the calibration samples with one modality blank, per modality: keeps int8 faithful when a "
        "sensor drops out.",
        show_default="0.1",
    ),
    click.option(
        "--blank",
        "blanks",
        multiple=True,
        metavar="INPUT=WHAT",
        help="What a silent input looks like: zeros, mean, silence:LEVEL, constant:VALUE or FILE.npy.",
        show_default="zeros for float inputs",
    ),
    click.option("--threads", type=int, help="Threads to measure with.", show_default="the backend's choice"),
    click.option("--seed", type=int, help="Seed of the data split.", show_default="0"),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any field of a recipe, repeatable: evaluate.batch=8, 'target=[cpu, rtx-ada]'.",
    ),
]


def set_option(command: F) -> F:
    """Adds `--set` to a command that reads a recipe."""
    return _OPTIONS[-1](command)


def recipe_options(command: F) -> F:
    """Adds the options of a recipe to a command, in order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def require_recipes() -> None:
    """Loads what reads a recipe.

    Raises:
        MissingExtraError: pydantic or PyYAML is not installed.
    """
    from edgemm._optional import require

    for package in ("pydantic", "yaml"):
        require(package, extra="convert", why="read a recipe")


def require_convert() -> None:
    """Loads what a conversion needs.

    Raises:
        MissingExtraError: Something is not installed; the hint names the extra.
    """
    from edgemm._optional import require

    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "sklearn", "matplotlib"):
        require(package, extra="convert", why="convert a model")
    require("onnxruntime", extra="cpu", why="measure and verify what convert ships")


def read_recipe(model: Path, options: dict[str, Any]) -> Recipe:
    """Returns the recipe that a model file, or a YAML file, and the options come to.

    Raises:
        RecipeError: A field is wrong.
        BackendError: There is no such target.
    """
    from edgemm.backends.targets import find_targets
    from edgemm.export.sniff import sniff
    from edgemm.recipe.loader import build_recipe, load_recipe, merge
    from edgemm.recipe.overrides import overrides_of

    fields = merge(_fields(options), overrides_of(options["sets"]))
    if sniff(model) == "recipe":
        recipe = load_recipe(model, fields)
    else:
        recipe = build_recipe(merge({"model": {"path": model}}, fields), where="options")
    find_targets(recipe.target)  # a wrong name is answered before torch loads
    return recipe


def _sizes(text: str) -> tuple[str, list[int]]:
    """Returns `("batch", [1, 2, 8])` of `batch=1:2:8`."""
    name, sizes = pair("--profile", text, "DIM=MIN:OPT:MAX")
    parts = sizes.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"got '{text}', expected DIM=MIN:OPT:MAX.", param_hint="--profile")
    low, usual, high = map(int, parts)
    if not 1 <= low <= usual <= high:
        raise click.BadParameter(
            f"got '{text}', expected DIM=MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX.", param_hint="--profile"
        )
    return name, [low, usual, high]


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe fields that the given options set; an option that was not given sets none."""

    def given(value: Any) -> bool:
        return value is not None and value is not False  # 0 is a value

    places = {
        "model": {"factory": "factory", "allow_pickle": "allow_pickle"},
        "data": {"calib": "calib", "eval": "eval_", **{key: key for key in ("label", "seed", "blank_share")}},
        "evaluate": {"metric": "metric", "output": "output_name", "max_drop": "max_drop"},
        "export": {"opset": "opset"},
        "quantize": {
            key: key
            for key in ("precision", "calibrator", "objective", "max_latency_ms", "search_seconds", "plan")
        },
    }
    fields: dict[str, Any] = {
        section: {key: options[name] for key, name in names.items() if given(options[name])}
        for section, names in places.items()
    }
    if options["no_cache"]:
        fields["quantize"]["cache"] = False
    top = {key: options[key] for key in ("layout", "engine", "threads") if options[key] is not None}
    heads = dict(pair("--head", text, "NAME=MODEL") for text in options.get("heads") or ())
    missing = {"learn": options.get("learn_missing"), "heads": heads, "report": options.get("modality_report")}
    if any(missing.values()):
        fields["missing"] = {key: value for key, value in missing.items() if value}
    if options["target"]:
        top["target"] = options["target"]
    if options["profiles"]:
        top["profiles"] = dict(map(_sizes, options["profiles"]))
    fields = {name: section for name, section in fields.items() if section} | top
    return fields | input_fields(options["inputs"], options["modalities"], options["states"], options["blanks"])
