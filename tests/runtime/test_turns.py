"""What is between two measured blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from edgemm.runtime import turns


def work(until: Callable[[], bool]) -> threading.Thread:
    """Starts a thread that is at work until a condition holds."""

    def spin() -> None:
        while not until():
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    return thread


def test_a_rest_ends_when_no_thread_is_at_work_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_LONGEST", 30.0)
    end = time.perf_counter() + 0.1
    busy = work(lambda: time.perf_counter() > end)
    turns.rest()
    assert not busy.is_alive()


def test_a_rest_ends_beside_a_thread_that_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_LONGEST", 0.05)
    stop = threading.Event()
    busy = work(stop.is_set)
    turns.rest()
    assert busy.is_alive()
    stop.set()
    busy.join()


def test_a_rest_is_one_look_where_all_threads_are_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        looks.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(turns, "_LONGEST", 30.0)
    monkeypatch.setattr(turns, "_QUIET", 1.5)  # whatever else this process does
    monkeypatch.setattr("edgemm.runtime.turns.time.sleep", noted)
    turns.rest()
    assert len(looks) == 1
