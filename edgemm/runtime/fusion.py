"""Runs a fusion model: the engines of its stages, chained by tensor name, behind one checked call.

The checks cost little because a combination of shapes that was accepted once is remembered; only the dtype and
the memory layout of each array are looked at again. A lone engine without states then gets the feed as it is.

Engines on a GPU give each other arrays that stay there, and do not wait: encoders run side by side, each on its
own stream, and the fusion head's stream waits for them. The host waits once, for the results.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from edgemm.bundle import Manifest, StageEntry, Variant
from edgemm.errors import BackendError
from edgemm.runtime.cache import CACHE_BYTES, CacheInfo, CacheMode, StageCache, check_marks, check_mode, off_info
from edgemm.runtime.chain import check_engines, copied, direct_call, fetched, lenders, make_steps
from edgemm.runtime.choice import Choice
from edgemm.runtime.feeds import FeedCheck
from edgemm.runtime.gate import Gate
from edgemm.runtime.live import LiveLatency, counted, record_stages, session_report
from edgemm.runtime.raw import RawFeeds
from edgemm.runtime.schedule import Chain, Span, seconds_of
from edgemm.runtime.session import EngineSession
from edgemm.runtime.stand_ins import Behind, StandIns
from edgemm.runtime.state import StateStore, restore, snapshot
from edgemm.tensors import Feed, IOSpec

if TYPE_CHECKING:
    from edgemm.runtime.stream import Stream


class FusionSession:
    """An opened bundle (or a bare ONNX file). Made by `open_session`; a context manager.

    `run` may be called from several threads at once. Without states the calls run side by side. With states they
    run one after the other, each from the state that the one before it left; a call that fails changes nothing.
    No call sees two bundles: `swap` and `close` wait for the calls under way.

    Attributes:
        manifest: What the bundle says; for a bare ONNX file, what could be read from it.
        variant: The variant that was chosen; of a bundle with both layouts, with reuse, the one with stages.
        schedule: How its engines share the cores of a CPU.
        choice: What `open_session` chose, and why nothing better; None of a session that was made otherwise.
        stand_ins: What the bundle holds for modalities without a sample.
        raw: Makes inputs of raw arrays, where the bundle has steps that run on the host.
        reopen: Opens another bundle as this one was opened, for `swap`; None of a session that was made otherwise.
        latency: How long the calls of `run`, and of the session's streams, take: a live histogram.
        stage_latency: The same per engine, of the calls of `run_timed`.
    """

    def __init__(
        self, manifest: Manifest, variant: Variant, engines: Sequence[EngineSession], chain: Chain | None = None
    ) -> None:
        """Chains `engines`, one for each of `variant.engines`, in that order. The session closes them.

        `chain` says how they run, None one after the other; what else it runs comes last in `engines`.

        Raises:
            BundleError: An engine takes or gives something else than the manifest says.
        """
        self._gate = Gate(manifest.name)
        self._streams: WeakSet[Stream] = WeakSet()
        self.reopen: Callable[..., FusionSession] | None = None
        self.manifest = manifest
        self.variant = variant
        self.choice: Choice | None = None
        self.raw: RawFeeds | None = None
        self.stand_ins = StandIns(manifest, variant, {})
        self.latency = LiveLatency()
        self.stage_latency: dict[str, LiveLatency] = {}
        self._engines = tuple(engines)
        check_engines(manifest, variant, self._engines[: len(variant.engines)])
        io = self._io = manifest.io
        self._results = tuple(o.name for o in io.result_outputs)
        self._passed_through = frozenset(o.name for o in io.outputs) & frozenset(i.name for i in io.inputs)
        self._chain = chain or Chain(make_steps(io, variant, self._engines))
        self._steps, self.schedule = self._chain.steps, self._chain.schedule
        self._states = StateStore(io) if io.states else None
        self._lock = threading.Lock()
        self._lenders = lenders(self._engines)
        self._feeds = FeedCheck(io, self._lenders, manifest.least)
        self._cache: StageCache | None = None
        self._cache_bytes = CACHE_BYTES
        self._cache_mode: CacheMode = "off"
        alone = self._states is None and not self._passed_through
        self._direct = direct_call(self._steps, self._feeds.names, self._results) if alone else None

    @property
    def io(self) -> IOSpec:
        """Names, dtypes, shapes, modalities and states of what `run` takes and gives."""
        return self._io if self.raw is None else self.raw.io

    @property
    def backend(self) -> str:
        """What runs the engines: it need not be what the variant was made for, see `choice`."""
        return self.choice.backend if self.choice is not None else self.variant.backend

    @property
    def stages(self) -> tuple[StageEntry, ...]:
        """The stages in topological order."""
        return self.manifest.stages

    @property
    def joins(self) -> tuple[Mapping[str, Any], ...]:
        """The nodes where stages meet: `{node, op, kind, stage, sources}` each."""
        return self.manifest.joins

    @property
    def state(self) -> dict[str, np.ndarray]:
        """A copy of the kept states by input name; empty before the first call and after a reset."""
        with self._lock:
            return snapshot(self._states)

    def reset_state(self) -> None:
        """Forgets the kept states: the next call starts from zeros. Without states it does nothing."""
        self.restore({})

    def snapshot(self) -> dict[str, np.ndarray]:
        """Returns `state`, to go on from with `restore`, here or in another session on the same model."""
        return self.state

    def restore(self, states: Feed) -> None:
        """Goes on from states that `snapshot` gave, by copy; from zeros where it is empty.

        Raises:
            DataError: A state is missing, unknown, or not of the dtype and shape that the model takes.
        """
        with self._lock:
            restore(self._states, states)

    def use_cache(self, mode: CacheMode, max_bytes: int = CACHE_BYTES) -> None:
        """Sets what `run` and streams that begin later may reuse, and forgets what `run` could.

        Args:
            mode: `"auto"`, `"content"`, `"marks"` or `"off"`, as `open_session` has them.
            max_bytes: The most that is held, by `run` and by each stream.

        Raises:
            DataError: No such mode, or a negative size.
        """
        check_mode(mode, max_bytes)
        with self._gate.entered(in_turn=False):
            self._cache_mode, self._cache_bytes = mode, 0 if mode == "off" else max_bytes
            cache = self.new_cache(mode) if mode != "off" and len(self._steps) > 1 else None
            if cache is not None:
                cache.states, cache.lock = self._states, self._lock
            self._cache = cache

    def cache_info(self) -> CacheInfo:
        """Returns what is kept of earlier calls, how often it was reused, and why nothing is if so."""
        if (cache := self._cache) is not None:
            return cache.info()
        return off_info(one_engine=len(self._steps) == 1 and not self.variant.reuse)

    def report(self) -> dict[str, Any]:
        """Returns calls, percentiles, what ran and was reused per engine, and the cache, as plain JSON values."""
        return session_report(self)

    @counted
    def run(self, feed: Feed, changed: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the result outputs by name; states are kept, not returned.

        An engine runs if what it reads is not what it was in the call before: see `open_session`. The outputs are
        bit for bit those of running every stage; a bundle with both layouts has one engine for calls in which
        everything is new, whose outputs were found to differ as little as `manifest.measured["layouts"]` says.

        A state given in `feed` is used instead of the kept one. A model with a fixed batch of N takes any number
        of samples: they run in chunks of N, the last one filled up with its last sample.

        Args:
            feed: Input name -> C-contiguous array. Not changed, and not needed after the call. What an engine on a
                GPU reads may be an array on that GPU (torch, cupy, `DeviceArray`): it is read where it is.
            changed: Modalities that are new since the call before, by whichever thread; the others are taken to
                be the same without a look at them. Calls with marks follow one another. None compares, or runs
                everything, as the session was opened; with cache `"off"` everything runs.

        Raises:
            DataError: A missing or unknown input, a wrong dtype, shape or memory layout, a state of another batch
                size, or a mark on no modality.
            BackendError: An engine failed.
            BundleError: The session is closed.
            BusyError: Too many calls are under way; see `limit_calls`.
        """
        gate, call = self._gate, object()
        try:
            gate.calls.add(call)
            if gate.attended:
                gate.stop(call)
            feed = feed if self.raw is None else self.raw(feed)
            if changed is not None:
                check_marks(self._io, changed)
            direct = self._direct
            if direct is not None and type(feed) is dict and self._feeds.recognise(feed):
                return dict(zip(self._results, direct(feed), strict=True))
            cache = self._cache
            if cache is not None and (cache.active or changed is not None):
                return self._run_cached(cache, feed, changed)
            return self._run(feed, None)
        finally:
            gate.calls.discard(call)
            if gate.attended:
                gate.left()

    def run_timed(self, feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns what `run` returns, raising as it does, and the seconds of each engine. Every engine runs."""
        outputs, spans = self.run_spans(feed)
        record_stages(self.stage_latency, seconds := seconds_of(self._steps, spans))
        return outputs, seconds

    def run_spans(self, feed: Feed) -> tuple[dict[str, np.ndarray], list[Span]]:
        """Returns what `run` returns, raising as it does, and when each engine ran: side by side they overlap."""
        with self._gate.entered():
            spans: list[Span] = []
            return self._run(feed if self.raw is None else self.raw(feed), spans), spans

    def run_on_device(self, feed: Feed) -> dict[str, Any]:
        """Returns the result outputs as arrays on the GPU (`edgemm.runtime.cuda.DeviceArray`), without waiting.

        torch, cupy and others take them without a copy. Outputs of engines on the CPU are numpy arrays.

        Args:
            feed: As for `run`; of a model with a fixed batch of N exactly N samples.

        Raises:
            EdgemmError: As `run`.
            BackendError: No engine of this session is on a GPU.
        """
        with self._gate.entered():
            if not any(step.run_on_device for step in self._steps):
                raise BackendError(
                    f"the variant '{self.variant.name}' runs on the CPU: nothing of it is on a GPU.",
                    hint="call run(), or open a variant for an NVIDIA target",
                )
            return self._run(feed if self.raw is None else self.raw(feed), None, stay=True)

    def stream(self, *, clock: Callable[[], float] = monotonic, **policy: Any) -> Stream:
        """Returns a stream: sensors push samples into it, and sets of samples run through this session.

        Args:
            clock: Seconds since anything; a test may set it.
            **policy: Fields of `edgemm.runtime.stream_policy.StreamPolicy`, in the place of what the recipe said.

        Raises:
            EdgemmError: The policy does not fit the model, or asks for a fill that the bundle does not hold.
        """
        from edgemm.runtime.stream import Stream
        from edgemm.runtime.stream_policy import policy_of

        with self._gate.entered(in_turn=False):
            stream = Stream(self, policy_of(self.manifest.stream, policy), clock)
            self._streams.add(stream)
        return stream

    def limit_calls(self, max_in_flight: int | None, max_wait: float | None = None) -> None:
        """Sets how many calls may be under way at once (None: any number), sets of streams among them.

        One more waits for its turn, `max_wait` seconds at most: then it raises `BusyError`, with 0 at once.

        Raises:
            DataError: A number out of range.
        """
        self._gate.limit(max_in_flight, max_wait)

    def swap(
        self, path: str | os.PathLike[str], feed: Feed | None = None, *, keep_state: bool = False, **opening: Any
    ) -> None:
        """Goes on with another bundle of the same signature, from one call to the next.

        It is opened, run and checked while the old one serves calls; on any failure nothing has changed. What was
        kept for reuse is dropped, and states, those of streams too, begin at zeros: no result mixes two bundles.

        Args:
            path: Of the bundle or ONNX file.
            feed: What the new engines must give finite results for; None takes random numbers.
            keep_state: Whether states go on, for a model that reads those of the old one.
            **opening: Arguments of `open_session` in the place of those that the session was opened with.

        Raises:
            EdgemmError: As `open_session`; other inputs, outputs or states (`BundleError`); a run that fails or
                gives what is not finite (`BackendError`); a call under way that does not end (`BusyError`).
        """
        from edgemm.runtime.swap import swap

        swap(self, path, feed, keep_state=keep_state, opening=opening)

    def entered(self) -> AbstractContextManager[None]:
        """Returns a block in which the session keeps its bundle: for `run_cached`; `run` has one of its own."""
        return self._gate.entered()

    def close(self) -> None:
        """Closes its streams, waits for the calls under way and frees the engines. Later calls fail."""
        for stream in tuple(self._streams):
            stream.shut()
        self._gate.close()
        self._chain.close()
        for engine in self._engines:
            engine.close()

    def __enter__(self) -> FusionSession:
        """Returns the session itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the session."""
        self.close()

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.io.feed_inputs, self.io.result_outputs))
        return f"<FusionSession {self.manifest.name} ({self.variant.name}): {inputs} -> {outputs}>"

    def _run(self, feed: Feed, spans: list[Span] | None, *, stay: bool = False) -> dict[str, np.ndarray]:
        if self._cache is not None:
            self._cache.forget()  # marks are about the call before
        feed = self._feeds.lent(feed)
        if self._states is not None:
            with self._lock:
                values = self._states.complete(feed, self._feeds.check)
                self._chain.run(values, spans, stay=stay)
                self._states.keep(values)
                return self._take(values, stay=stay)
        self._feeds.check(feed)
        if not self._feeds.in_one_go(feed):
            return self._run_chunks(feed, spans, stay=stay)
        values = dict(feed)
        self._chain.run(values, spans, stay=stay)
        return self._take(values, stay=stay)

    def new_cache(self, mode: CacheMode) -> StageCache:
        """Returns a cache for `run_cached`, with states of its own, that holds as much as this session's may."""
        return StageCache(self._io, self._chain, mode, self._cache_bytes)

    @counted
    def run_cached(
        self, cache: StageCache, feed: Feed, changed: Collection[str] | None, behind: Behind | None = None
    ) -> dict[str, np.ndarray]:
        """Returns what `run` returns, with `cache` instead of the session's own.

        Args:
            cache: From `new_cache`.
            feed: The model's own inputs, as for `run`; with `behind`, of a model with a fixed batch of N exactly
                N samples.
            changed: As for `run`; a modality is changed, too, when `behind` begins or ends to stand for it.
            behind: Engines that do not run, and their outputs instead.

        Raises:
            EdgemmError: As `run`.
        """
        return self._run_cached(cache, feed, changed, behind)

    def _run_cached(
        self, cache: StageCache, feed: Feed, changed: Collection[str] | None, behind: Behind | None = None
    ) -> dict[str, np.ndarray]:
        if changed is None and cache.states is None:
            return self._reuse(cache, feed, None, behind)
        with cache.lock:
            try:
                return self._reuse(cache, feed, changed, behind)
            except BaseException:
                cache.forget()  # what was new in this call is not marked in the next one
                raise

    def _reuse(
        self, cache: StageCache, feed: Feed, changed: Collection[str] | None, behind: Behind | None
    ) -> dict[str, np.ndarray]:
        feed = self._feeds.lent(feed)
        if cache.states is not None:
            values = cache.states.complete(feed, self._feeds.check)
            cache.chain(values, changed, behind)
            cache.states.keep(values)
            return self._take(values)
        self._feeds.check(feed)
        if not behind and not self._feeds.in_one_go(feed):
            cache.forget()
            return self._run_chunks(feed, None, stay=False)
        values = dict(feed)
        cache.chain(values, changed, behind)
        return self._take(values)

    def _take(self, values: Mapping[str, Any], *, stay: bool = False) -> dict[str, np.ndarray]:
        if self._passed_through:
            values = {n: copied(values[n]) if n in self._passed_through else values[n] for n in self._results}
        if self._lenders and not stay:
            return {name: fetched(values[name]) for name in self._results}
        return {name: values[name] for name in self._results}

    def _run_chunks(self, feed: Feed, spans: list[Span] | None, *, stay: bool) -> dict[str, np.ndarray]:
        def run(values: dict[str, Any]) -> dict[str, np.ndarray]:
            self._chain.run(values, spans)
            return self._take(values)

        return self._feeds.run_chunks(feed, run, stay=stay)
