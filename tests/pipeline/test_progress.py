"""The clock of a conversion."""

from __future__ import annotations

import time

import pytest

from edgemm.pipeline.progress import Clock


def test_a_step_within_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    with clock("verify"):
        now += 1
        with clock("build"):
            now += 2
            with clock("measure"):
                now += 4
        now += 8
        with clock("measure"):
            now += 16
    with clock("bundle"):
        now += 32
    assert clock.seconds == {"verify": 9, "build": 2, "measure": 20, "bundle": 32}
    assert sum(clock.seconds.values()) == now
