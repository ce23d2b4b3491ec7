"""Sensors push samples at their own rates; sets of samples that belong together run through a session.

    with session.stream(trigger="camera", optional={"audio": "last"}, max_age={"audio": 0.5}) as stream:
        camera.on_frame(lambda frame, t: stream.push("camera", frame, t))
        microphone.on_window(lambda window, t: stream.push("audio", window, t))
        for result in stream:
            print(result.outputs["logits"], result.ages, result.cached)

`push` may be called from any thread. Results are taken in one of four ways: iterate, iterate in asyncio, have a
callback called (`start`), or ask (`poll` for the set that is due, `infer` for one as of now). Each set runs alone
and in the order of its time. Encoders of samples that were in the set before do not run again: a pushed sample is
new by definition, so nothing is compared.

A stream has its own states. Everything that it decides depends on the samples, their times and the clock only;
with a clock that a test sets it is deterministic (`poll` and `infer`; waiting takes real time).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgemm.errors import BundleError, DataError, StreamError
from edgemm.runtime.cache import CacheInfo
from edgemm.runtime.state import restore, snapshot
from edgemm.runtime.stream_intake import Intake
from edgemm.runtime.stream_policy import StreamPolicy, is_number
from edgemm.runtime.stream_result import Result, StreamCounters, make_result, report, what_ran
from edgemm.runtime.stream_sync import JUMP, Sample, SampleSet, Synchronizer
from edgemm.tensors import Feed

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.runtime.stream_async import Front


class Stream:
    """Samples in, results out. Made by `FusionSession.stream`; a context manager, also in asyncio."""

    def __init__(
        self, session: FusionSession, policy: StreamPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins a stream on `session`, which it does not close.

        Args:
            session: What runs the sets.
            policy: What makes a set.
            clock: Seconds since anything; `push` takes capture times of the same clock.

        Raises:
            EdgemmError: The policy does not fit the model, or asks for a fill that its bundle does not hold.
        """
        io = session.io
        policy.check(io, session.stand_ins)
        self.policy = policy
        self._intake = Intake(session.manifest, session.raw)
        self._session = session
        self._clock = clock
        self._raw, self._elapsed = clock(), 0.0
        self._sync = Synchronizer(io.modality_names(), policy, self._raw)
        self._cache = session.new_cache("marks")
        self._tokens: dict[str, int | tuple[str, ...]] = {}
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._pushes = self._results = self._failed = self._callback_errors = 0
        self._closed = False
        self._worker: threading.Thread | None = None
        self._front: Front | None = None

    def push(self, modality: str, sample: np.ndarray | Mapping[str, np.ndarray], t: float | None = None) -> bool:
        """Takes a sample, by copy, and returns at once, unless `drop` is `"block"` and there is no room.

        Args:
            modality: What it is a sample of.
            sample: One sample, with or without the batch axis; of a modality with several inputs a dict.
            t: When it was captured, by the clock of the stream; None is now.

        Returns:
            False if it is not used: captured before one that has come already, or with NaN in it.

        Raises:
            DataError: An unknown modality, or an array that is not what the model takes.
            StreamError: The stream is closed or has ended, or waiting for room would be for ever.
        """
        arrays = self._intake.arrays(modality, sample)
        if t is not None and not is_number(t):
            raise DataError(f"push('{modality}'): got the time {t!r:.40}.", hint="seconds of the stream's clock")
        nan = self.policy.reject_nan and any(a.dtype.kind == "f" and np.isnan(a).any() for a in arrays.values())
        with self._changed:
            self._check_open()
            if nan:
                self._sync.reject(modality)
                return False
            while self._sync.full(modality):
                self._check_waiting()
                self._changed.wait()
                self._check_open()
            now, elapsed = self._times(None)
            captured = float(now if t is None else t)
            at = captured + self.policy.offset.get(modality, 0.0)
            self._pushes += 1
            accepted = self._sync.offer(Sample(modality, arrays, captured, at, elapsed, self._pushes))
            if accepted:
                self._intake.newest[modality] = arrays
                self._notify()
            return accepted

    def poll(self, now: float | None = None) -> Result | None:
        """Runs the next set that the trigger makes due, and returns its result; None where none is due.

        Args:
            now: What the clock shows; None asks it.

        Raises:
            StreamError: The stream is closed.
            EdgemmError: The run failed. The set is gone, the stream goes on.
        """
        with self._turn:
            with self._changed:
                self._check_open(pushing=False)
                found = self._sync.take(*self._times(now))
                if found is not None:
                    self._notify()  # there is room
            return self._run(found) if found is not None else None

    def infer(self, now: float | None = None) -> Result:
        """Runs the set as of now, whatever triggers, and returns its result. It waits for nothing.

        Sets of earlier samples that waited for their turn are not run any more.

        Args:
            now: What the clock shows; None asks it.

        Raises:
            StreamError: A required modality has no sample that fits, or the stream is closed.
            EdgemmError: The run failed.
        """
        with self._turn:
            with self._changed:
                self._check_open(pushing=False)
                found = self._sync.take_at(self._times(now)[0])
                if found.lacking:
                    raise StreamError(
                        f"no sample fits for {', '.join(found.lacking)} at {found.time:.6g} s.",
                        hint="push one first, widen window or max_age, or say what goes in: optional={...}",
                    )
                self._notify()
            return self._run(found)

    def start(
        self, callback: Callable[[Result], object], on_error: Callable[[Exception], object] | None = None
    ) -> None:
        """Calls `callback` with every result, in a thread of its own.

        What a run or the callback raises goes to `on_error`, without one to the log `edgemm`; the stream goes on.

        Raises:
            StreamError: Closed, or somebody else takes the results.
        """
        with self._changed:
            self._check_open(pushing=False)
            self._check_free()
            self._worker = threading.Thread(
                target=self._work, args=(callback, on_error), name="edgemm-stream", daemon=True
            )
            self._worker.start()

    def end(self) -> None:
        """Takes no more samples. What waits is worked off without waiting for more, then iteration ends."""
        with self._changed:
            self._sync.ended = True
            self._notify()

    def close(self) -> None:
        """Ends at once: drops what waits, lets a run under way end, wakes whoever waits.

        A second call does nothing. Called by the callback it returns before that callback has.
        """
        self.shut()
        worker = self._worker
        if worker is threading.current_thread():
            return
        if worker is not None:
            worker.join()
        with self._turn:
            self._cache.forget()

    def shut(self) -> None:
        """Ends at once as `close` does, without waiting for a run under way."""
        with self._changed:
            self._closed = True
            self._sync.clear()
            self._notify()

    def reset_state(self) -> None:
        """Forgets the states of this stream: the next set starts from zeros."""
        self.restore({})

    def snapshot(self) -> dict[str, np.ndarray]:
        """Returns a copy of the states of this stream, without its samples; empty before the first set."""
        with self._cache.lock:
            return snapshot(self._cache.states)

    def restore(self, states: Feed) -> None:
        """Goes on from states of one sample that `snapshot` gave, raising as `FusionSession.restore` does."""
        with self._cache.lock:
            restore(self._cache.states, states, samples=1)

    def follow(self, states: Feed) -> None:
        """Goes on with the engines that its session has now and with `states`; samples that wait go into these."""
        with self._changed:
            newest, self._intake = self._intake.newest, Intake(self._session.manifest, self._session.raw)
            self._intake.newest.update(newest)
        self._cache.follow(self._session.new_cache(self._cache.mode), states)

    def cache_info(self) -> CacheInfo:
        """Returns what is kept of earlier sets, and how often it was reused."""
        return self._cache.info()

    @property
    def counters(self) -> StreamCounters:
        """What has been counted so far."""
        with self._changed:
            sync = self._sync
            return StreamCounters(
                self._results,
                sync.incomplete,
                self._failed,
                sync.skipped,
                self._callback_errors,
                sync.epoch,
                sync.counters(),
            )

    def __iter__(self) -> Iterator[Result]:
        """Returns the stream itself: results until it is closed, or has ended and worked off what waited."""
        return self

    def __next__(self) -> Result:
        """Waits for the next result and returns it.

        Raises:
            StreamError: A callback takes the results.
            EdgemmError: The run failed; iteration may go on.
        """
        with self._changed:
            self._check_free()
        result = self._next()
        if result is None:
            raise StopIteration
        return result

    def __aiter__(self) -> Stream:
        """Returns the stream itself, to be iterated in asyncio. Runs are in the loop's executor."""
        return self

    async def __anext__(self) -> Result:
        """Waits for the next result and returns it. One that is cancelled loses nothing: the next one has it.

        Raises:
            StreamError: A callback takes the results.
            EdgemmError: The run failed; iteration may go on.
        """
        from edgemm.runtime.stream_async import Front

        with self._changed:
            self._check_free()
            self._front = self._front or Front(self)
        result = await self._front.next()
        if result is None:
            raise StopAsyncIteration
        return result

    def __enter__(self) -> Stream:
        """Returns the stream itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the stream."""
        self.close()

    async def __aenter__(self) -> Stream:
        """Returns the stream itself."""
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Closes the stream."""
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def look(self) -> tuple[bool, float | None]:
        """Returns whether there may be a result now, and after how many seconds there may be one by itself.

        Raises:
            StopIteration: There will be none any more.
        """
        with self._changed:
            if self._closed or (self._sync.ended and self._sync.idle):
                raise StopIteration
            times = self._times(None)
            return self._sync.ready(*times), self._sync.wait(*times)

    def _run(self, found: SampleSet) -> Result:
        """Runs a set; `_turn` is held."""
        tokens = {m: s.number if s is not None else found.filled for m, s in found.samples.items()}
        try:
            with self._session.entered():  # one bundle for all of it
                feed, behind = self._intake.feed(found, self.policy, self._session.stand_ins)
                marks = {m for m, token in tokens.items() if self._tokens.get(m) != token}
                outputs = self._session.run_cached(self._cache, feed, marks, behind)
                engines = what_ran(self._cache, behind)
        except BaseException:
            self._failed += 1
            raise
        self._tokens = tokens
        result = make_result(found, self.policy, outputs, engines, self._clock(), self._results)
        self._results += 1
        return result

    def _next(self) -> Result | None:
        """Waits for the next result; returns None when there will be none."""
        while True:
            with self._changed:
                seen = self._pushes
            try:
                result = self.poll()
            except StreamError:
                if self._closed:
                    return None
                raise
            if result is not None:
                return result
            try:
                ready, seconds = self.look()
            except StopIteration:
                return None
            with self._changed:
                if not ready and not self._closed and not self._sync.ended and seen == self._pushes:
                    self._changed.wait(seconds)

    def _work(self, callback: Callable[[Result], object], on_error: Callable[[Exception], object] | None) -> None:
        while True:
            try:
                result = self._next()
            except Exception as error:
                report(error, on_error)
                if isinstance(error, BundleError):  # the session is closed
                    self.close()
                continue
            if result is None:
                return
            try:
                callback(result)
            except Exception as error:
                self._callback_errors += 1
                report(error, on_error)
            except BaseException:  # SystemExit: nobody takes results any more
                self.close()
                raise

    def _times(self, now: float | None) -> tuple[float, float]:
        """Returns what the clock shows, and the seconds since the stream began; the latter never go back."""
        raw = self._clock() if now is None else now
        if not is_number(raw):
            raise DataError(f"the clock of the stream shows {raw!r:.40}.", hint="give one that shows seconds")
        if raw < self._raw:
            if self._raw - raw > JUMP:
                self._sync.restart()
            self._sync.set_back(raw)
        self._elapsed += max(0.0, raw - self._raw)
        self._raw = raw
        return raw, self._elapsed

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._front is not None:
            self._front.wake()

    def _check_open(self, *, pushing: bool = True) -> None:
        if self._closed or (pushing and self._sync.ended):
            raise StreamError(
                f"the stream is closed{'' if self._closed else ' for samples: end() was called'}.",
                hint="stop the sensor before the stream, or begin another one: session.stream(...)",
            )

    def _check_free(self) -> None:
        if self._worker is not None and not self._closed:
            raise StreamError("a callback takes the results already.", hint="iterate, or start a callback")

    def _check_waiting(self) -> None:
        if threading.current_thread() is self._worker or (self._front is not None and self._front.is_here()):
            raise StreamError(
                "the queue is full, and whoever pushes is who takes the results.",
                hint="push from another thread, or use another drop rule than 'block'",
            )
