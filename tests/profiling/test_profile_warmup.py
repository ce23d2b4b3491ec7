"""The warm-up ends when the times stay the same, by the rule that it states."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgemm.profiling.warmup import WarmupRule, warm_up


class Machine:
    """A clock that calls move on by what they take."""

    def __init__(self, takes: Callable[[int], float]) -> None:
        self.time, self.calls, self._takes = 0.0, 0, takes

    def clock(self) -> float:
        return self.time

    def call(self) -> None:
        self.time += self._takes(self.calls)
        self.calls += 1


def test_constant_times_are_steady_after_two_windows() -> None:
    machine = Machine(lambda at: 0.001)
    found = warm_up(machine.call, WarmupRule(), machine.clock)
    assert (found["runs"], found["reached"], machine.calls) == (20, True, 20)
    assert "two windows of 10 runs" in found["rule"]
    assert "5%" in found["rule"]


def test_falling_times_are_waited_for() -> None:
    machine = Machine(lambda at: 0.001 * (1 + 2 ** (-at / 10)))
    found = warm_up(machine.call, WarmupRule(), machine.clock)
    assert found["reached"]
    assert 40 <= found["runs"] <= 80
    assert found["runs"] % 10 == 0


def test_an_outlier_in_a_window_does_not_matter() -> None:
    machine = Machine(lambda at: 0.5 if at == 13 else 0.001)
    assert warm_up(machine.call, WarmupRule(), machine.clock)["runs"] == 20


def test_times_that_never_settle_end_at_the_cap() -> None:
    machine = Machine(lambda at: 0.0001 * 1.02**at)
    found = warm_up(machine.call, WarmupRule(runs=60), machine.clock)
    assert (found["runs"], found["reached"]) == (60, False)


def test_slow_calls_are_compared_in_short_windows_and_bounded_in_time() -> None:
    machine = Machine(lambda at: 0.5)
    assert warm_up(machine.call, WarmupRule(), machine.clock)["runs"] == 6
    very_slow = Machine(lambda at: 20.0)
    found = warm_up(very_slow.call, WarmupRule(), very_slow.clock)
    assert (found["runs"], found["reached"]) == (1, False)


@pytest.mark.parametrize("runs", [0, 1, 7, 25])
def test_a_fixed_number_is_a_fixed_number(runs: int) -> None:
    machine = Machine(lambda at: 20.0 + at)
    found = warm_up(machine.call, WarmupRule(fixed=runs), machine.clock)
    assert (found["runs"], machine.calls) == (runs, runs)
    assert found["rule"] == f"{runs} runs, as asked"
