"""What a recipe says of rates and of profiling, held against the model: every modality of it must be one."""

from __future__ import annotations

from edgemm.errors import RecipeError
from edgemm.recipe import Recipe
from edgemm.tensors import IOSpec


def check_rates(recipe: Recipe, io: IOSpec) -> None:
    """Checks `profile` and `inputs.NAME.rate`.

    Raises:
        RecipeError: A modality that the model has not, or two inputs of one modality at different rates.
    """
    names = io.modality_names()
    asked = {f"profile.rates.{name}": name for name in recipe.profile.rates or {}}
    asked |= {f"profile.cached.{number}": name for number, name in enumerate(recipe.profile.cached)}
    for field, name in asked.items():
        if name not in names:
            unknown = io.no_modality(field, name)
            raise RecipeError(str(unknown), hint=unknown.hint)
    first: dict[str, str] = {}
    for name, section in recipe.inputs.items():
        modality = io.modalities.get(section.source or name) or io.modalities.get(name)
        if section.rate is None or modality is None:
            continue
        other = first.setdefault(modality, name)
        if recipe.inputs[other].rate != section.rate:
            raise RecipeError(
                f"inputs.{name}.rate: {section.rate:g} Hz, and input '{other}' of the same modality '{modality}' "
                f"has {recipe.inputs[other].rate:g} Hz.",
                hint="inputs of one modality come together: give one rate, or two modalities",
            )
