"""The benchmark of the runtime: its cases run what they say, on engines that are nearly nothing."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ stands beside the package

from benchmarks.runtime import Case, check, open_cases  # noqa: E402
from benchmarks.tiny import make_bundle, measure_overhead  # noqa: E402
from edgemm.runtime import FusionSession  # noqa: E402

FEEDS = [
    {
        n: np.random.default_rng((seed, at)).normal(size=(1, 8)).astype(np.float32)
        for at, n in enumerate(("image", "audio"))
    }
    for seed in range(4)
]


def test_overhead_is_that_of_every_kind_of_call() -> None:
    found = measure_overhead(runs=30)
    assert found["stages"] == 3
    assert found["onnxruntime_us"] > 0
    assert set(found["added_us_per_stage"]) == {"run", "marks, everything new", "content, nothing new"}


def test_cases_run_the_engines_that_they_are_named_after(tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny.edgemm")
    with ExitStack() as stack:
        cases = open_cases(tmp_path / "tiny.edgemm", FEEDS, 2, stack)
        check(cases, FEEDS)
        ran = {name: case.engines() for name, case in cases.items() if isinstance(case, Case)}
        parallel = cases["parallel"]
        assert isinstance(parallel, FusionSession)
        assert parallel.schedule.order == "parallel"
    every = {"image", "audio", "fusion"}
    expected = {"image": {"image", "fusion"}, "audio": {"audio", "fusion"}, "nothing": set()}
    assert ran == {
        "both": every,
        **{f"{name} new{seen}": engines for name, engines in expected.items() for seen in ("", ", seen")},
    }


def test_check_sees_a_result_that_was_reused_wrongly(tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny.edgemm")
    with ExitStack() as stack:
        cases = open_cases(tmp_path / "tiny.edgemm", FEEDS, 1, stack)
        case = cases["image new"]
        assert isinstance(case, Case)
        case.new = frozenset({"audio"})  # what is fed
        run = case.session.run
        case.session.run = lambda feed, changed: run(feed, {"image"})  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="image new: a reused result differs"):
            check(cases, FEEDS)
