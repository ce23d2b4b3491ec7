"""Runs a fusion model: the engines of its stages, chained by tensor name, behind one checked call.

The checks cost little because a combination of shapes that was accepted once is remembered; only the dtype and
the memory layout of each array are looked at again. A lone engine without states then gets the feed as it is.

Engines on a GPU give each other arrays that stay there, and do not wait: encoders run side by side, each on its
own stream, and the fusion head's stream waits for them. The host waits once, for the results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic, perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle import Manifest, StageEntry, Variant
from edgemm.errors import BackendError, BundleError, DataError
from edgemm.runtime._cuda.array import DeviceArray, LentArray, on_device
from edgemm.runtime.cache import CACHE_BYTES, ONE_ENGINE, CacheInfo, CacheMode, StageCache, check_marks, check_mode
from edgemm.runtime.chain import check_engines, copied, dtype_of, lenders, make_steps, shown
from edgemm.runtime.choice import Choice
from edgemm.runtime.session import EngineSession
from edgemm.runtime.stand_ins import Behind, StandIns
from edgemm.runtime.state import StateStore
from edgemm.tensors import Feed, IOSpec, check_feed

if TYPE_CHECKING:
    from edgemm.runtime.stream import Stream

_MAX_REMEMBERED = 256
"""How many accepted shape combinations a session remembers."""


class FusionSession:
    """An opened bundle (or a bare ONNX file). Made by `open_session`; a context manager.

    `run` may be called from several threads at once. Without states the calls run side by side. With states they
    run one after the other, each from the state that the one before it left; a call that fails changes nothing.

    Attributes:
        manifest: What the bundle says; for a bare ONNX file, what could be read from it.
        variant: The variant that was chosen.
        choice: What `open_session` chose, and why nothing better; None of a session that was made otherwise.
        stand_ins: What the bundle holds for modalities without a sample.
    """

    def __init__(self, manifest: Manifest, variant: Variant, engines: Sequence[EngineSession]) -> None:
        """Chains `engines`, one for each of `variant.engines`, in that order. The session closes them.

        Raises:
            BundleError: An engine takes or gives something else than the manifest says.
        """
        self.manifest = manifest
        self.variant = variant
        self.choice: Choice | None = None
        self.stand_ins = StandIns(manifest, variant, {})
        self._engines = tuple(engines)
        check_engines(manifest, variant, self._engines)
        io = self._io = manifest.io
        self._results = tuple(o.name for o in io.result_outputs)
        self._passed_through = frozenset(o.name for o in io.outputs) & frozenset(i.name for i in io.inputs)
        self._steps = make_steps(io, variant, self._engines)
        self._dtypes = tuple((i.name, dtype_of(i)) for i in io.inputs)
        self._accepted: dict[tuple[tuple[int, ...], ...], bool] = {}
        """Shapes that passed `check_feed` -> whether they run in one go, not in chunks."""
        self._states = StateStore(io) if io.states else None
        self._batch = io.batch if isinstance(io.batch, int) else 0
        self._batched = tuple(i.name for i in io.inputs if self._batch and i.shape[:1] == (io.batch,))
        self._lock = threading.Lock()
        self._closed = False
        self._lenders = lenders(self._engines)
        self._cache: StageCache | None = None
        self._cache_bytes = CACHE_BYTES
        self._direct = self._direct_call()

    @property
    def io(self) -> IOSpec:
        """Names, dtypes, shapes, modalities and states of the model."""
        return self._io

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
            return {name: np.array(value) for name, value in self._states.kept.items()} if self._states else {}

    def reset_state(self) -> None:
        """Forgets the kept states: the next call starts from zeros. Without states it does nothing."""
        with self._lock:
            if self._states:
                self._states.kept = {}

    def use_cache(self, mode: CacheMode, max_bytes: int = CACHE_BYTES) -> None:
        """Sets what `run` and streams that begin later may reuse, and forgets what `run` could.

        A session that `open_session` made has what was asked of that; any other reuses nothing until this call.

        Args:
            mode: `"auto"`, `"content"`, `"marks"` or `"off"`, as `open_session` has them.
            max_bytes: The most that is held, by `run` and by each stream.

        Raises:
            DataError: No such mode, or a negative size.
        """
        check_mode(mode, max_bytes)
        self._cache_bytes = 0 if mode == "off" else max_bytes
        if mode == "off" or len(self._steps) == 1:
            self._cache = None
            return
        cache = self.new_cache(mode)
        cache.states, cache.lock = self._states, self._lock
        self._cache = cache

    def cache_info(self) -> CacheInfo:
        """Returns what is kept of earlier calls, how often it was reused, and why nothing is if so."""
        if self._cache is not None:
            return self._cache.info()
        return CacheInfo("off", ONE_ENGINE if len(self._steps) == 1 else "", (), {}, {}, 0, 0, 0)

    def run(self, feed: Feed, changed: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the result outputs by name; states are kept, not returned.

        An engine runs if what it reads is not what it was in the call before: see `open_session`. The outputs are
        bit for bit those of running every engine.

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
        """
        direct = self._direct
        if direct is not None and type(feed) is dict and self._recognise(feed):
            if changed is not None:
                check_marks(self._io, changed)
            return dict(zip(self._results, direct(feed), strict=True))
        if changed is not None:
            check_marks(self._io, changed)
        cache = self._cache
        if cache is not None and (cache.active or changed is not None):
            return self.run_cached(cache, feed, changed)
        return self._run(feed, None)

    def run_timed(self, feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns what `run` returns, and the seconds that each engine took, by engine name. Every engine runs.

        Raises:
            EdgemmError: As `run`.
        """
        seconds = {step.name: 0.0 for step in self._steps}
        return self._run(feed, seconds), seconds

    def run_on_device(self, feed: Feed) -> dict[str, Any]:
        """Returns the result outputs as arrays on the GPU (`edgemm.runtime.cuda.DeviceArray`), without waiting.

        torch, cupy and others take them without a copy. Outputs of engines on the CPU are numpy arrays.

        Args:
            feed: As for `run`; of a model with a fixed batch of N exactly N samples.

        Raises:
            EdgemmError: As `run`.
            BackendError: No engine of this session is on a GPU.
        """
        if not any(step.run_on_device for step in self._steps):
            raise BackendError(
                f"the variant '{self.variant.name}' runs on the CPU: nothing of it is on a GPU.",
                hint="call run(), or open a variant for an NVIDIA target",
            )
        return self._run(feed, None, stay=True)

    def stream(self, *, clock: Callable[[], float] = monotonic, **policy: Any) -> Stream:
        """Returns a stream: sensors push samples into it, and sets of samples run through this session.

        Args:
            clock: Seconds since anything; a test may set it.
            **policy: Fields of `edgemm.runtime.stream_policy.StreamPolicy`: `trigger`, `optional`, `window`,
                `max_age`, `offset`, `timeout`, `queue`, `drop`, `reject_nan`, in the place of what the
                recipe said. Without it they are the policy's own defaults.

        Raises:
            DataError: The policy does not fit the model.
            BundleError: It asks for a fill that the bundle does not hold.
        """
        from edgemm.runtime.stream import Stream
        from edgemm.runtime.stream_policy import policy_of

        return Stream(self, policy_of(self.manifest.stream, policy), clock)

    def close(self) -> None:
        """Frees the engines; a second call does nothing. Calls under way in other threads may fail."""
        self._closed = True
        self._direct = None
        for engine in self._engines:
            engine.close()

    def __enter__(self) -> FusionSession:
        """Returns the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the session."""
        self.close()

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.io.feed_inputs, self.io.result_outputs))
        return f"<FusionSession {self.manifest.name} ({self.variant.name}): {inputs} -> {outputs}>"

    def _run(self, feed: Feed, seconds: dict[str, float] | None, *, stay: bool = False) -> dict[str, np.ndarray]:
        if self._closed:
            raise BundleError(f"the session on '{self.manifest.name}' is closed.", hint="open it again")
        if type(feed) is not dict and not isinstance(feed, Mapping):
            check_feed(self._io, feed)  # says that it is no mapping
        if self._cache is not None:
            self._cache.forget()  # marks are about the call before
        if self._lenders:
            feed = self._lent(feed)
        if self._states is not None:
            with self._lock:
                values = self._states.complete(feed, self._check)
                self._chain(values, seconds, stay=stay)
                self._states.keep(values)
                return self._take(values, stay=stay)
        self._check(feed)
        if not self._in_one_go(feed):
            return self._run_chunks(feed, seconds, stay=stay)
        values = dict(feed)
        self._chain(values, seconds, stay=stay)
        return self._take(values, stay=stay)

    def new_cache(self, mode: CacheMode) -> StageCache:
        """Returns a cache for `run_cached`, with states of its own, that holds as much as this session's may."""
        return StageCache(self._io, self._steps, mode, self._cache_bytes)

    def run_cached(
        self, cache: StageCache, feed: Feed, changed: Collection[str] | None, behind: Behind | None = None
    ) -> dict[str, np.ndarray]:
        """Returns what `run` returns, with `cache` instead of the session's own.

        Args:
            cache: From `new_cache`.
            feed: As for `run`; with `behind`, of a model with a fixed batch of N exactly N samples.
            changed: As for `run`; a modality is changed, too, when `behind` begins or ends to stand for it.
            behind: Engines that do not run, and their outputs instead.

        Raises:
            EdgemmError: As `run`.
        """
        if self._closed or not isinstance(feed, Mapping):
            return self._run(feed, None)  # which says so
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
        if self._lenders:
            feed = self._lent(feed)
        if cache.states is not None:
            values = cache.states.complete(feed, self._check)
            cache.chain(values, changed, behind)
            cache.states.keep(values)
            return self._take(values)
        self._check(feed)
        if not behind and not self._in_one_go(feed):
            cache.forget()
            return self._run_chunks(feed, None, stay=False)
        values = dict(feed)
        cache.chain(values, changed, behind)
        return self._take(values)

    def _lent(self, feed: Feed) -> Feed:
        """Returns `feed` with arrays of other libraries on a GPU as ones that engines read in the right order."""
        lent: dict[str, Any] = {
            name: self._lenders[name](name, value)
            for name, value in feed.items()
            if name in self._lenders and type(value) is not np.ndarray and on_device(value)
            if not isinstance(value, DeviceArray | LentArray)
        }
        return {**feed, **lent} if lent else feed

    def _check(self, feed: Feed) -> None:
        """Checks `feed` as `check_feed` does, quickly where the same shapes were accepted before."""
        if self._recognise(feed) is not None:
            return
        if self._lenders:
            feed = {name: shown(value) for name, value in feed.items()}
        check_feed(self._io, feed)
        if len(feed) < len(self._dtypes):
            return  # a state was left out
        if len(self._accepted) >= _MAX_REMEMBERED:
            self._accepted.clear()
        self._accepted[tuple([feed[name].shape for name, _ in self._dtypes])] = self._in_one_go(feed)

    def _recognise(self, feed: Feed) -> bool | None:
        """Returns whether `feed` runs in one go, or None when it is not known to be right."""
        if len(feed) != len(self._dtypes):
            return None
        shapes = []
        for name, dtype in self._dtypes:
            array = feed.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or not array.flags.c_contiguous:
                return None
            shapes.append(array.shape)
        return self._accepted.get(tuple(shapes))

    def _in_one_go(self, feed: Feed) -> bool:
        return not self._batched or feed[self._batched[0]].shape[0] == self._batch

    def _direct_call(self) -> Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]] | None:
        """Returns the call of a lone engine that takes the feed and gives the results as they are, else None."""
        if len(self._steps) != 1 or self._states is not None or self._passed_through:
            return None
        (step,) = self._steps
        whole = set(step.inputs) == {name for name, _ in self._dtypes} and step.outputs == self._results
        return step.run if whole else None

    def _chain(self, values: dict[str, Any], seconds: dict[str, float] | None, *, stay: bool = False) -> None:
        """Runs every engine over `values`, adds what they give and drops what is no longer needed."""
        for step in self._steps:
            given = step.given(values)
            call = step.run_on_device if stay and step.run_on_device is not None else step.run
            if seconds is None:
                results = call(given)
            else:
                start = perf_counter()
                results = call(given)
                if step.wait is not None:
                    step.wait()
                seconds[step.name] += perf_counter() - start
            values.update(zip(step.outputs, results, strict=True))
            for name in step.done:
                del values[name]

    def _take(self, values: Mapping[str, Any], *, stay: bool = False) -> dict[str, np.ndarray]:
        if self._passed_through:
            values = {n: copied(values[n]) if n in self._passed_through else values[n] for n in self._results}
        if self._lenders and not stay:
            return {
                n: values[n].numpy() if isinstance(values[n], DeviceArray) else values[n] for n in self._results
            }
        return {name: values[name] for name in self._results}

    def _run_chunks(self, feed: Feed, seconds: dict[str, float] | None, *, stay: bool) -> dict[str, np.ndarray]:
        """Runs a feed of any number of samples on a model with a fixed batch."""
        size = self._batch
        samples = feed[self._batched[0]].shape[0]
        self._check_chunks(samples)
        if stay or any(isinstance(value, DeviceArray | LentArray) for value in feed.values()):
            raise DataError(
                f"got {samples} samples; on the GPU, a model with a fixed batch takes exactly {size}.",
                hint=f"give {size} samples at a time, or numpy arrays to run()",
            )
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._results}
        for start in range(0, samples, size):
            values = dict(feed)
            for name in self._batched:
                values[name] = _filled(feed[name][start : start + size], size)
            self._chain(values, seconds)
            for name, value in self._take(values).items():
                parts[name].append(value)
        return {name: np.concatenate(values)[:samples] for name, values in parts.items()}

    def _check_chunks(self, samples: int) -> None:
        if samples == 0:
            raise DataError(
                f"input '{self._batched[0]}': got no samples, the model takes {self._batch} at a time.",
                hint="feed at least one sample",
            )
        for spec in self._io.result_outputs:
            if spec.shape[:1] != (self._batch,):
                raise DataError(
                    f"got {samples} samples, but the model has a fixed batch of {self._batch} and its output "
                    f"'{spec.name}' {list(spec.shape)} is not one row per sample.",
                    hint=f"feed {self._batch} samples at a time, or convert the model with a dynamic batch",
                )


def _filled(part: np.ndarray, size: int) -> np.ndarray:
    """Returns `part` with its last row repeated until it has `size` rows."""
    lacking = size - part.shape[0]
    return np.concatenate([part, np.repeat(part[-1:], lacking, axis=0)]) if lacking else part
