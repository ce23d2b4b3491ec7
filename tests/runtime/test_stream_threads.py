"""Streams with real threads, a real clock and a real event loop: nothing lost, nothing stuck, no error unseen."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemm.errors import StreamError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.stream import Result, Stream

WAIT = 30.0


@pytest.fixture
def session(fusion_bundle: Path) -> Iterator[FusionSession]:
    with open_session(fusion_bundle) as session:
        yield session


IMAGE, AUDIO = np.zeros(4, np.float32), np.zeros((2, 2), np.float32)


def image(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


def check(stream: Stream) -> None:
    counters = stream.counters
    for c in counters.modalities.values():
        assert c.pushed == c.used + c.dropped + c.late + c.rejected + c.pending


def test_a_callback_gets_every_result_in_order(session: FusionSession) -> None:
    results: list[Result] = []
    with session.stream(trigger="image", queue=1000) as stream:
        stream.push("audio", AUDIO)
        stream.start(results.append)
        threads = [threading.Thread(target=lambda: [stream.push("audio", AUDIO) for _ in range(50)]) for _ in "ab"]
        for thread in threads:
            thread.start()
        for value in range(100):
            stream.push("image", image(value))
        for thread in threads:
            thread.join()
        stream.end()
        assert stream._worker is not None
        stream._worker.join(WAIT)
        assert not stream._worker.is_alive()
    assert [r.number for r in results] == list(range(100))
    assert [r.time for r in results] == sorted(r.time for r in results)
    assert all(r.latency is not None and r.latency >= 0 for r in results)
    assert stream.counters.results == 100
    check(stream)


def test_what_callbacks_and_runs_raise_is_told_and_the_stream_goes_on(
    session: FusionSession, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = []
    seen = threading.Semaphore(0)

    def callback(result: Result) -> None:
        seen.release()
        if result.number % 2:
            raise ValueError(f"no {result.number}")

    with session.stream(trigger="image", optional={"audio": "zeros"}) as stream:
        stream.start(callback, errors.append)
        for _ in range(6):
            stream.push("image", IMAGE)
            assert seen.acquire(timeout=WAIT)
    assert [str(e) for e in errors] == ["no 1", "no 3", "no 5"]
    assert stream.counters.callback_errors == 3

    def broken(error: Exception) -> None:
        raise KeyError("on_error")

    with (
        caplog.at_level(logging.ERROR, "edgemm"),
        session.stream(trigger="image", optional={"audio": "zeros"}) as stream,
    ):
        stream.start(lambda result: 1 / 0, broken)
        stream.push("image", IMAGE)
        stream.end()
        assert stream._worker is not None
        stream._worker.join(WAIT)
    assert "stream: 'on_error'" in caplog.text


def test_closing_the_session_closes_its_stream(session: FusionSession) -> None:
    errors: list[Exception] = []
    stream = session.stream(trigger="image", optional={"audio": "zeros"})
    stream.start(lambda result: None, errors.append)
    iterated: list[object] = []
    other = session.stream(trigger="image")
    taker = threading.Thread(target=lambda: iterated.extend(other), daemon=True)
    taker.start()
    session.close()
    for thread in (taker, stream._worker):  # nobody waits for samples that will not be used
        assert thread is not None
        thread.join(WAIT)
        assert not thread.is_alive()
    assert (errors, iterated) == ([], [])
    with pytest.raises(StreamError, match="closed"):
        stream.push("image", IMAGE)
    check(stream)


def test_close_wakes_whoever_waits(session: FusionSession) -> None:
    outcome: list[object] = []
    idle = session.stream(trigger="image")
    full = session.stream(trigger="image", queue=1, drop="block", window=1e6)

    def push() -> None:
        try:
            for _ in range(3):
                full.push("image", IMAGE)
        except StreamError as error:
            outcome.append(error)

    threads = [threading.Thread(target=lambda: outcome.append(list(idle))), threading.Thread(target=push)]
    for thread in threads:
        thread.start()
    while full.counters.modalities["image"].pushed < 1:
        time.sleep(0.001)
    idle.close()
    full.close()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert sorted(type(o).__name__ for o in outcome) == ["StreamError", "list"]
    check(full)


def test_close_lets_a_run_end_and_may_come_from_the_callback(session: FusionSession) -> None:
    inside, results = threading.Event(), []

    def callback(result: Result) -> None:
        inside.set()
        time.sleep(0.05)
        results.append(result)

    stream = session.stream(trigger="image", optional={"audio": "zeros"})
    stream.start(callback)
    stream.push("image", IMAGE)
    assert inside.wait(WAIT)
    stream.close()
    assert len(results) == 1

    stream = session.stream(trigger="image", optional={"audio": "zeros"})
    stream.start(lambda result: stream.close())
    stream.push("image", IMAGE)
    assert stream._worker is not None
    stream._worker.join(WAIT)
    assert not stream._worker.is_alive()
    stream.close()


def test_block_makes_pushes_wait_and_loses_nothing(session: FusionSession) -> None:
    with session.stream(trigger="image", queue=2, drop="block", optional={"audio": "zeros"}) as stream:
        pusher = threading.Thread(
            target=lambda: ([stream.push("image", image(v)) for v in range(200)], stream.end())
        )
        pusher.start()
        results = list(stream)
        pusher.join(WAIT)
    assert len(results) == 200
    found = stream.counters.modalities["image"]
    assert (found.used, found.dropped) == (200, 0)


def test_a_callback_that_pushes_into_its_own_full_queue_is_told(session: FusionSession) -> None:
    errors: list[Exception] = []
    stream = session.stream(trigger="image", queue=1, drop="block", optional={"audio": "zeros"})

    def callback(result: Result) -> None:
        if result.number == 0:
            stream.push("image", IMAGE)
            stream.push("image", IMAGE)

    stream.start(callback, errors.append)
    stream.push("image", IMAGE)
    deadline = time.monotonic() + WAIT
    while not errors and time.monotonic() < deadline:
        time.sleep(0.001)
    stream.close()
    assert "whoever pushes is who takes the results" in str(errors[0])


def test_a_set_that_waits_is_run_when_its_time_is_over(session: FusionSession) -> None:
    with session.stream(trigger="image", window=0.02, optional={"audio": "zeros"}) as stream:
        stream.push("image", IMAGE)
        result = next(stream)
    assert result.filled == {"audio": "zeros"}
    assert result.latency is not None
    assert result.latency >= 0.02


def test_a_rate_ticks_by_itself(session: FusionSession) -> None:
    with session.stream(trigger=200.0, optional={"audio": "zeros"}) as stream:
        stream.push("image", IMAGE)
        results = [next(stream) for _ in range(4)]
    times = [r.time for r in results]
    steps = np.diff(times) * 200
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert all(s >= 1 - 1e-6 for s in steps)


def test_one_taker_of_results(session: FusionSession) -> None:
    with session.stream() as stream:
        stream.start(lambda result: None)
        with pytest.raises(StreamError, match="a callback takes the results"):
            next(stream)
        with pytest.raises(StreamError, match="a callback takes the results"):
            stream.start(lambda result: None)


def test_asyncio_iterates(session: FusionSession) -> None:
    async def main() -> tuple[list[Result], Stream]:
        results = []
        async with session.stream(trigger="image", queue=100) as stream:
            stream.push("audio", AUDIO)

            async def camera() -> None:
                for value in range(30):
                    stream.push("image", image(value))
                    await asyncio.sleep(0.001)
                stream.end()

            task = asyncio.create_task(camera())
            async for result in stream:
                results.append(result)
            await task
        return results, stream

    results, stream = asyncio.run(main())
    assert [r.number for r in results] == list(range(30))
    assert stream.counters.results == 30
    check(stream)


def test_asyncio_is_woken_by_threads_timeouts_and_close(session: FusionSession) -> None:
    async def main() -> list[Result]:
        stream = session.stream(trigger="image", window=0.02, optional={"audio": "zeros"})
        timer = threading.Timer(0.02, stream.push, ("image", IMAGE))
        timer.start()
        results = [await anext(stream)]
        closer = threading.Timer(0.02, stream.close)
        closer.start()
        results += [result async for result in stream]
        timer.join()
        closer.join()
        return results

    (result,) = asyncio.run(main())
    assert result.filled == {"audio": "zeros"}


def test_asyncio_loses_nothing_when_a_waiter_is_cancelled(session: FusionSession) -> None:
    async def main() -> list[int]:
        numbers = []
        async with session.stream(trigger="image", queue=1000, optional={"audio": "zeros"}) as stream:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
            for value in range(50):
                stream.push("image", image(value))
            stream.end()
            for _ in range(20):
                task = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
                numbers.append((await anext(stream)).number)
            numbers += [result.number async for result in stream]
        return numbers

    assert asyncio.run(main()) == list(range(50))


def test_asyncio_may_not_block_itself(session: FusionSession) -> None:
    async def main() -> None:
        async with session.stream(trigger="image", queue=1, drop="block", optional={"audio": "zeros"}) as stream:
            stream.push("image", IMAGE)
            await anext(stream)
            stream.push("image", IMAGE)
            with pytest.raises(StreamError, match="whoever pushes is who takes the results"):
                stream.push("image", IMAGE)

    asyncio.run(main())


def test_a_stream_belongs_to_one_event_loop(session: FusionSession) -> None:
    stream = session.stream(trigger="image", optional={"audio": "zeros"})

    async def one() -> int:
        stream.push("image", IMAGE)
        return (await anext(stream)).number

    assert asyncio.run(one()) == 0
    with pytest.raises(StreamError, match="another event loop"):
        asyncio.run(one())
    stream.close()
