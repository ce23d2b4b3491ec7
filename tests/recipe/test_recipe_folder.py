"""Every recipe in `recipes/` is valid, says what it shows, and has a training script."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.recipe.loader import judge
from edgemm.recipe.source import read_text

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_valid_and_says_what_it_shows(path: Path) -> None:
    recipe, problems = judge(read_text(path))
    assert [str(problem) for problem in problems] == []
    assert recipe is not None
    assert recipe.about is not None
    assert recipe.data.calib is not None
    assert recipe.data.eval is not None
    assert recipe.evaluate.metric is not None
    assert len({section.modality for section in recipe.inputs.values()} - {None}) >= 2


def test_there_are_some() -> None:
    assert len(RECIPES) >= 5
