"""What keeps a variant from shipping, in words."""

from __future__ import annotations

from edgemm.pipeline.objections import inaccurate
from edgemm.recipe import Recipe


def test_a_drop_with_a_blank_modality_reads_as_a_sentence() -> None:
    recipe = Recipe.model_validate({"model": {"path": "m.onnx"}})
    found = {"metric": "accuracy", "samples": 800, "split": "evaluation", "drop": 0.0, "cosine": 1.0}
    assert inaccurate(recipe, found) is None
    blank = {"rgb": found | {"drop": 0.015}}
    text = inaccurate(recipe, found | {"blank": blank})
    assert text == "accuracy drops by 0.015 on 800 evaluation samples with rgb blank, budget 0.01"
