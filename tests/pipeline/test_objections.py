"""What keeps a variant from shipping, in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgemm.pipeline.objections import far_slower, inaccurate, too_slow
from edgemm.recipe import Recipe
from edgemm.runtime.latency import Latencies
from edgemm.runtime.turns import Timing


def timed(ms: float, floating: float = 1.0) -> tuple[Any, Any]:
    """A variant that takes `ms`, and the float one, measured together."""
    timings = {
        name: Timing(Latencies(np.full(9, value * 1e-3)), {}, Latencies(np.full(9, value * 1e-3)))
        for name, value in (("int8", ms), ("fp32", floating))
    }
    judged = SimpleNamespace(
        ms=ms, timings=timings, candidate=SimpleNamespace(variant=SimpleNamespace(name="int8"))
    )
    return judged, SimpleNamespace(candidate=SimpleNamespace(variant=SimpleNamespace(name="fp32")))


@pytest.mark.parametrize(("ms", "far", "slower"), [(0.8, False, False), (1.1, False, True), (1.3, True, True)])
def test_what_is_far_behind_is_told_from_what_is_slower(ms: float, far: bool, slower: bool) -> None:
    recipe = Recipe.model_validate({"model": {"path": "m.onnx"}})
    assert far_slower(recipe, *timed(ms)) is far
    assert bool(too_slow(recipe, *timed(ms))) is slower
    limited = Recipe.model_validate({"model": {"path": "m.onnx"}, "quantize": {"max_latency_ms": 0.5}})
    assert "--max-latency-ms" in str(too_slow(limited, *timed(ms)))


def test_a_drop_with_a_blank_modality_reads_as_a_sentence() -> None:
    recipe = Recipe.model_validate({"model": {"path": "m.onnx"}})
    found = {"metric": "accuracy", "samples": 800, "split": "evaluation", "drop": 0.0, "cosine": 1.0}
    assert inaccurate(recipe, found) is None
    blank = {"rgb": found | {"drop": 0.015}}
    text = inaccurate(recipe, found | {"blank": blank})
    assert text == "accuracy drops by 0.015 on 800 evaluation samples with rgb blank, budget 0.01"
