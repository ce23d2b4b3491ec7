"""What a recipe wants for missing modalities, held against the rest of it and against the model."""

from __future__ import annotations

from collections.abc import Mapping

from edgemm.errors import DataError, RecipeError, did_you_mean
from edgemm.pipeline.missing import LEARNED, Cut
from edgemm.recipe import Recipe
from edgemm.runtime.heads import head_name
from edgemm.runtime.stand_ins import BEHIND
from edgemm.runtime.stream_policy import policy_of
from edgemm.tensors import IOSpec


def check_fills(recipe: Recipe) -> None:
    """Checks what the recipe alone tells of fills, before anything is loaded.

    Raises:
        RecipeError: A stream is to be filled with what is not trained or not there, a head's file is not there, or
            something is to be trained for a model with states.
    """
    learn, heads = recipe.missing.learn, recipe.missing.heads
    for name, model in heads.items():
        if not model.is_file():
            near = [p.name for p in model.parent.iterdir()] if model.parent.is_dir() else []
            raise RecipeError(
                f"head '{name}': there is no file {model}.",
                hint=did_you_mean(model.name, near, "give a trained model: --head NAME=MODEL"),
            )
    for modality, fill in (recipe.stream.optional or {}).items():
        if (head := head_name(fill)) is not None and head not in heads:
            raise RecipeError(
                f"stream: optional: the fill of '{modality}' is '{fill}', which missing.heads does not have.",
                hint=did_you_mean(head, heads, f"add --head {head}=MODEL (missing.heads in a recipe)"),
            )
        if fill == LEARNED and modality not in learn:
            raise RecipeError(
                f"stream: optional: the fill of '{modality}' is 'learned', and missing.learn does not have it.",
                hint=f"add --learn-missing {modality} (missing.learn in a recipe), or use the fill mean",
            )
    if learn and recipe.states:
        raise _no_training(learn[0])


def _no_training(modality: str) -> RecipeError:
    return RecipeError(
        f"missing.learn: no value can be trained for '{modality}': the model keeps states.",
        hint="leave it out, and use another fill: mean, last, zeros, constant:VALUE or blank",
    )


def check_policy(recipe: Recipe, io: IOSpec) -> None:
    """Checks what the recipe says of streams and of missing modalities against the model.

    Raises:
        RecipeError: An unknown modality, or something that cannot be had with this data or layout.
    """
    try:
        policy_of(recipe.stream.given(), {}).check(io)
    except DataError as error:
        raise RecipeError(f"stream: {error}", hint=error.hint) from error
    names = io.modality_names()
    for modality in recipe.missing.learn:
        if modality not in names:
            unknown = io.no_modality("missing.learn", modality)
            raise RecipeError(str(unknown), hint=unknown.hint)
    heads = tuple(recipe.missing.heads)
    if heads and io.states:
        raise RecipeError(
            f"missing.heads: '{heads[0]}' cannot stand in: the model keeps states, which would be lost.",
            hint="leave it out, and use another fill: mean, last, zeros, constant:VALUE or blank",
        )
    if heads and recipe.layout == "whole":
        raise RecipeError(
            f"missing.heads: '{heads[0]}' goes in behind the encoders; the layout 'whole' has one engine.",
            hint="use --layout staged",
        )
    if heads and recipe.data.calib is None:
        raise RecipeError(
            f"missing.heads: '{heads[0]}' is checked with calibration samples, and there are none.",
            hint="give some with --calib",
        )
    wanted = behind_wanted(recipe)
    if wanted and recipe.data.calib is None:
        raise RecipeError(
            f"what stands for '{wanted[0]}' is computed from calibration samples, and there are none.",
            hint="give some with --calib",
        )
    if wanted and recipe.layout == "whole":
        raise RecipeError(
            f"what stands for '{wanted[0]}' goes in behind its encoder; the layout 'whole' has one engine.",
            hint="use --layout staged",
        )
    if recipe.missing.learn and io.states:
        raise _no_training(recipe.missing.learn[0])
    if recipe.missing.report and recipe.data.eval is None and recipe.data.calib is None:
        raise RecipeError("the modality report needs samples, and there are none.", hint="give some with --eval")


def behind_wanted(recipe: Recipe) -> tuple[str, ...]:
    """Returns the modalities for which the recipe wants something that goes in behind their encoders."""
    filled = [m for m, fill in (recipe.stream.optional or {}).items() if fill in BEHIND]
    return tuple(dict.fromkeys([*filled, *recipe.missing.learn]))


def check_cuts(recipe: Recipe, cuts: Mapping[str, Cut], io: IOSpec) -> None:
    """Checks that what the recipe wants behind encoders can be had there.

    Raises:
        RecipeError: It cannot, with the reason.
    """
    told = frozenset(name for name, section in recipe.inputs.items() if section.blank is not None)
    for modality in behind_wanted(recipe):
        obstacle = cuts[modality].obstacle(io, told)
        if obstacle is None and modality in recipe.missing.learn:
            obstacle = "it has no encoder" if cuts[modality].encoder is None else None
        if obstacle is not None:
            raise RecipeError(
                f"nothing can stand for '{modality}' behind its encoder: {obstacle}.",
                hint="use another fill: last, zeros, constant:VALUE or blank",
            )
