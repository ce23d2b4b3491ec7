"""Reuse where engines are on a GPU: what is kept stays there, and is fetched for engines on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_fake import COMPILER
from test_fusion_gpu import STAGES, Make, check, cuda, feed_of, make  # noqa: F401

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the fake CUDA runtime is compiled with cc")


@pytest.mark.parametrize("on_cpu", [(), ("fusion",), ("image",), ("image", "fusion")])
@pytest.mark.parametrize("marks", [True, False])
def test_encoders_of_what_is_unchanged_do_not_run(make: Make, on_cpu: tuple[str, ...], marks: bool) -> None:  # noqa: F811
    session = make(STAGES, on_cpu=on_cpu)
    session.use_cache("marks" if marks else "content")
    feed = feed_of(2)
    for seed, changed in ((1, {"image", "audio"}), (2, {"image"}), (3, {"audio"}), (4, set()), (5, {"image"})):
        feed = {n: feed_of(2, seed)[n] if n in changed else a for n, a in feed.items()}
        before = session.cache_info().ran
        for _ in range(2):
            out = session.run(feed, changed) if marks else session.run(feed)
            check(out, feed)
            assert all(isinstance(value, np.ndarray) for value in out.values())
            for value in out.values():
                value[:] = 0
        after = session.cache_info().ran
        expected = {*changed, "fusion"} if changed else set()
        assert {n for n in after if after[n] > before.get(n, 0)} == expected
    held = 2 * 4 * (3 + 2 + 2 + 5) + (0 if marks else 2 * 4 * 5)
    assert session.cache_info().bytes == held


def test_auto_waits_for_engines_that_it_measures(make: Make) -> None:  # noqa: F811
    session = make(STAGES)
    session.use_cache("auto")
    for seed in range(6):
        feed = feed_of(2, seed // 2)
        check(session.run(feed), feed)
