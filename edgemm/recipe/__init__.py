"""Recipes: what to convert and how, as validated sections (pydantic lives here only)."""

from edgemm.recipe.loader import build_recipe, load_recipe
from edgemm.recipe.schema import Recipe

__all__ = ["Recipe", "build_recipe", "load_recipe"]
