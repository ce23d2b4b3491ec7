"""Load: how many calls at once, closing and interrupting while calls are under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.errors import BundleError, BusyError, DataError, StreamError
from edgemm.runtime import FusionSession, open_session

WAIT = 30.0

GOOD = {"image": np.ones((1, 4), np.float32), "audio": np.ones((1, 2, 2), np.float32)}


class Held(dict[str, np.ndarray]):
    """A feed whose call stays under way until `go` is set."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        super().__init__(feed)
        self.inside, self.go = threading.Event(), threading.Event()

    def get(self, name: str, default: Any = None) -> Any:
        self.inside.set()
        assert self.go.wait(WAIT)
        return super().get(name, default)


@pytest.fixture
def session(fusion_bundle: Path) -> FusionSession:
    return open_session(fusion_bundle)


def begin(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Starts a thread that keeps what the call gives or raises."""
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def ends(thread: threading.Thread) -> None:
    thread.join(WAIT)
    assert not thread.is_alive()


def waits(session: FusionSession, thread: threading.Thread, outcome: list[object]) -> None:
    """Makes sure that the thread had time to get past the gate, and did not."""
    time.sleep(0.05)
    assert thread.is_alive()
    assert not outcome


def test_close_waits_for_the_calls_under_way_and_refuses_later_ones(session: FusionSession) -> None:
    expected = session.run(GOOD)
    engines, held = session._engines, Held(GOOD)
    runner, result = begin(lambda: session.run(held))
    assert held.inside.wait(WAIT)
    closer, closed = begin(session.close)
    waits(session, closer, closed)
    calls: list[Callable[[], object]] = [
        lambda: session.run(GOOD),
        lambda: session.run_timed(GOOD),
        lambda: session.run_on_device(GOOD),
        lambda: session.stream(),
        lambda: session.use_cache("content"),
        lambda: session.swap("none.edgemm"),
    ]
    for call in calls:
        with pytest.raises(BundleError, match="the session on 'tiny' is closed") as caught:
            call()
        assert "open it again" in caught.value.hint
    another, closed_too = begin(session.close)
    held.go.set()
    for thread in (runner, closer, another):
        ends(thread)
    assert closed == closed_too == [None]
    (got,) = result
    assert isinstance(got, dict)
    assert got["logits"].tobytes() == expected["logits"].tobytes()
    for engine in engines:
        with pytest.raises(BundleError, match="is closed"):
            engine.run(GOOD)


def test_close_waits_for_the_set_of_a_stream(session: FusionSession) -> None:
    inside, go = threading.Event(), threading.Event()
    stream = session.stream(trigger="image", optional={"audio": "zeros"})
    stream.push("image", np.ones(4, np.float32))
    feed = stream._intake.feed

    def held(*arguments: Any) -> Any:
        inside.set()
        assert go.wait(WAIT)
        return feed(*arguments)

    stream._intake.feed = held  # type: ignore[method-assign]
    poller, result = begin(stream.poll)
    assert inside.wait(WAIT)
    closer, closed = begin(session.close)
    waits(session, closer, closed)
    go.set()
    ends(poller)
    ends(closer)
    assert not isinstance(result[0], BaseException)
    assert stream.counters.results == 1


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_a_call_that_is_interrupted_is_over(session: FusionSession, raised: type[BaseException]) -> None:
    class Bad(dict[str, np.ndarray]):
        def get(self, name: str, default: Any = None) -> Any:
            raise raised

    calls: list[Callable[[], object]] = [
        lambda: session.run(Bad(GOOD)),
        lambda: session.run_timed(Bad(GOOD)),
        lambda: session.run(Bad(GOOD), changed={"image"}),
    ]
    for limit in (None, 1):
        session.limit_calls(limit, 0)
        for call in calls:
            with pytest.raises(raised):
                call()
            assert not session._gate.calls
    session.run(GOOD)
    closer, closed = begin(session.close)
    ends(closer)
    assert closed == [None]


def test_no_more_calls_at_once_than_allowed(fusion_bundle: Path) -> None:
    session = open_session(fusion_bundle, max_in_flight=3)
    at_once, most, lock = 0, 0, threading.Lock()

    class Counted(dict[str, np.ndarray]):
        def get(self, name: str, default: Any = None) -> Any:
            nonlocal at_once, most
            if name == "image":
                with lock:
                    at_once += 1
                    most = max(most, at_once)
                time.sleep(0.002)
                with lock:
                    at_once -= 1
            return super().get(name, default)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: session.run(Counted(GOOD)), range(80)))
    assert len(results) == 80
    assert most == 3
    session.limit_calls(None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: session.run(Counted(GOOD)), range(80)))
    assert most > 3
    session.close()


def test_a_call_too_many_waits_or_is_refused(session: FusionSession) -> None:
    session.limit_calls(1, max_wait=0)
    held = Held(GOOD)
    runner, first = begin(lambda: session.run(held))
    assert held.inside.wait(WAIT)
    with pytest.raises(BusyError, match="'tiny': 1 calls are under way, max_in_flight allows 1") as caught:
        session.run(GOOD)
    assert "max_wait" in caught.value.hint
    session.limit_calls(1, max_wait=0.05)
    start = time.monotonic()
    with pytest.raises(BusyError):
        session.run(GOOD)
    assert time.monotonic() - start >= 0.05
    session.limit_calls(1)
    waiter, second = begin(lambda: session.run(GOOD))
    waits(session, waiter, second)
    held.go.set()
    ends(runner)
    ends(waiter)
    assert isinstance(first[0], dict)
    assert isinstance(second[0], dict)


def test_calls_that_wait_go_on_when_the_limit_is_raised_or_the_session_closed(session: FusionSession) -> None:
    session.limit_calls(1)
    held = Held(GOOD)
    runner, _ = begin(lambda: session.run(held))
    assert held.inside.wait(WAIT)
    waiter, result = begin(lambda: session.run(GOOD))
    waits(session, waiter, result)
    session.limit_calls(2)
    ends(waiter)
    assert isinstance(result[0], dict)
    session.limit_calls(1)
    waiter, result = begin(lambda: session.run(GOOD))
    waits(session, waiter, result)
    closer, _ = begin(session.close)
    ends(waiter)  # while the first call is under way still
    assert isinstance(result[0], BundleError)
    held.go.set()
    ends(runner)
    ends(closer)


def test_sets_of_streams_count(session: FusionSession) -> None:
    errors: list[Exception] = []
    session.limit_calls(1, max_wait=0)
    held = Held(GOOD)
    runner, _ = begin(lambda: session.run(held))
    assert held.inside.wait(WAIT)
    told = threading.Event()
    with session.stream(trigger="image", optional={"audio": "zeros"}) as stream:
        stream.start(lambda result: told.set(), lambda error: (errors.append(error), told.set()))
        stream.push("image", np.ones(4, np.float32))
        assert told.wait(WAIT)
        assert [type(e) for e in errors] == [BusyError]
        assert stream.counters.failed == 1
        told.clear()
        held.go.set()
        ends(runner)
        stream.push("image", np.ones(4, np.float32))
        assert told.wait(WAIT)
    assert len(errors) == 1
    assert stream.counters.results == 1


@pytest.mark.parametrize(
    ("most", "max_wait", "message"),
    [
        (0, None, "max_in_flight: got 0"),
        (True, None, "got True"),
        (1.5, None, "got 1.5"),
        (1, -1, "max_wait: got -1"),
    ],
)
def test_wrong_limits_are_refused(session: FusionSession, most: Any, max_wait: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        session.limit_calls(most, max_wait)
    session.run(GOOD)


def test_a_wrong_limit_opens_nothing(fusion_bundle: Path) -> None:
    with pytest.raises(DataError, match="max_in_flight: got -1"):
        open_session(fusion_bundle, max_in_flight=-1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_its_thread_closes_the_stream(session: FusionSession) -> None:
    def callback(result: object) -> None:
        raise SystemExit

    stream = session.stream(trigger="image", queue=1, drop="block", optional={"audio": "zeros"})
    stream.start(callback)
    pusher, outcome = begin(lambda: [stream.push("image", np.ones(4, np.float32)) for _ in range(20)])
    ends(pusher)  # it would wait for room for ever
    assert isinstance(outcome[0], StreamError)
    assert stream._worker is not None
    ends(stream._worker)
    session.run(GOOD)
