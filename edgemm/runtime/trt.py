"""Runs an engine on TensorRT 8.6 to 11 or TensorRT-RTX. The module is imported when one opens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgemm.errors import BackendError, BundleError
from edgemm.runtime._cuda.array import DeviceArray, LentArray
from edgemm.runtime._cuda.calls import Cuda, find_gpu
from edgemm.runtime._trt.borders import read_borders
from edgemm.runtime._trt.execution import Execution
from edgemm.runtime._trt.loading import cache_file, keep_cache, load_engine, make_context
from edgemm.runtime._trt.module import load_module
from edgemm.runtime._trt.ports import Pending
from edgemm.runtime._trt.profiling import attach_profiler, onnx_nodes, profile_json
from edgemm.runtime._trt.sidecar import read_engine
from edgemm.runtime.session import SessionOptions
from edgemm.tensors import TensorSpec

_log = logging.getLogger("edgemm")


class TensorRtSession:
    """One engine on one GPU. `run` may be called from several threads at once.

    There is one execution context, on a stream of its own. A call holds its lock only until the work is on the
    stream: while one thread waits for its results, another one's inputs are on their way.

    Inputs are numpy arrays, a `DeviceArray` of another session, or arrays of other libraries on the GPU that offer
    DLPack or `__cuda_array_interface__`; these are read where they are. numpy has no bfloat16 and no float8: such
    inputs are given, and such outputs come, as float32.

    Attributes:
        name: File name of the engine.
        inputs: As the graph declares them.
        outputs: Likewise.
    """

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        """Opens the engine file, after its sidecar has verified it.

        Raises:
            BackendError: A damaged engine, one that this TensorRT refuses, or an option that it has not.
            UnsupportedDeviceError: No GPU, or the engine was built by another version.
            MissingExtraError: The TensorRT module is not installed.
        """
        engine = Path(engine)
        self.name = engine.name
        self._idle = threading.Condition()
        self._running = 0
        self._closed = False
        self._lock = threading.Lock()
        self._stay = options.device_outputs
        sidecar, content = read_engine(engine)
        trt = load_module(sidecar.flavour)
        self.cuda = Cuda(options.device)
        with self.cuda.active():
            self._runtime, self._engine = load_engine(trt, engine, sidecar, content, options)
            del content
            borders = read_borders(trt, self._engine, sidecar, engine)
            self._kept: Path | None = None
            if options.cache is not None:
                where = f"{trt.__version__} {find_gpu(options.device).name}"
                self._kept = cache_file(options.cache, self.name, sidecar, where)
            context, self._cache = make_context(trt, self._engine, options, self.cuda, (self.name, self._kept))
            self._profiler = attach_profiler(trt, context) if options.profile_to is not None else None
            self._profile = Path(f"{options.profile_prefix(engine)}.json")
            self._nodes = onnx_nodes(trt, self._engine) if self._profiler is not None else {}
            graphs = options.cuda_graphs and self._profiler is None  # a replayed graph reports no layers
            self._execution = Execution(trt, context, borders, sidecar.profiles, self.cuda, graphs=graphs)
        self.inputs: tuple[TensorSpec, ...] = tuple(b.spec for b in borders[0])
        self.outputs: tuple[TensorSpec, ...] = tuple(b.spec for b in borders[1])
        self._all = frozenset(o.name for o in self.outputs)
        self._warm = False

    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        """Returns the outputs in the order of `outputs`, as numpy arrays.

        Those in `device_outputs` of the options are a `DeviceArray` each, for which nobody has waited.

        Args:
            feed: Exactly the engine's inputs.

        Raises:
            DataError: A wrong dtype, or a shape that no optimization profile takes.
            BackendError: TensorRT or CUDA failed.
            BundleError: The session is closed.
        """
        return self._run(feed, self._stay)

    def run_on_device(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        """Returns every output as a `DeviceArray`, without waiting; shapes that are on the host stay there.

        Raises:
            EdgemmError: As `run`.
        """
        return self._run(feed, self._all)

    def lend(self, name: str, value: Any) -> LentArray:
        """Returns another library's array on the GPU as an input, in the order of this session's stream.

        Raises:
            DataError: No engine can read it where it is.
            BackendError: CUDA fails.
            BundleError: The session is closed.
        """
        with self._entered(), self._lock:
            return LentArray(value, name, self._execution.stream)

    def wait(self) -> None:
        """Waits until every run that was begun is done.

        Raises:
            BackendError: One failed.
            BundleError: The session is closed.
        """
        with self._entered():
            self._execution.stream.synchronize()

    def close(self) -> None:
        """Frees what the engine holds; a second call does nothing. Runs under way in threads end first.

        A `DeviceArray` that is left stays as it is.
        """
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._running == 0)
        with ExitStack() as stack:
            try:
                stack.enter_context(self.cuda.active())
            except BackendError as error:  # a lost GPU; what was made is given back all the same
                _log.warning("%s", str(error))
            self._execution.close()
            self._keep_cache()
            if self._profiler is not None:
                self._profile.write_text(profile_json(self._profiler.layers, self._nodes))
                self._profiler = None
            self._cache = None
            self._engine = None  # after its context, before its runtime
            self._runtime = None

    def _run(self, feed: Mapping[str, Any], stay: frozenset[str]) -> list[Any]:
        with self._entered():
            try:
                with self._lock:
                    launched = self._execution.launch(feed, stay)
                results = _take(launched)
            except BackendError as error:
                raise type(error)(f"engine '{self.name}': {error}", hint=error.hint) from error
            if not self._warm:
                self._warm = True
                with self._lock:
                    self._keep_cache()  # a process that is killed has compiled its kernels for the next one
            return results

    def _keep_cache(self) -> None:
        if self._cache is not None and self._kept is not None:
            keep_cache(self._cache, self._kept)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Keeps the session open, and makes its GPU the thread's."""
        with self._idle:
            if self._closed:
                raise BundleError(f"engine '{self.name}' is closed.", hint="open the session again")
            self._running += 1
        try:
            with self.cuda.active():
                yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()


def _take(launched: Sequence[DeviceArray | Pending]) -> list[Any]:
    """Returns the results, those for the host when they are there; each is taken, also after a failure."""
    results: list[Any] = []
    first: BackendError | None = None
    for result in launched:
        if isinstance(result, DeviceArray):
            results.append(result)
            continue
        try:
            results.append(result.take())
        except BackendError as error:
            first = first or error
    if first is not None:
        raise first
    return results
