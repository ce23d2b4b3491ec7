"""One execution context at work: shapes in, addresses in, one launch on a stream of its own, results out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from edgemm.errors import BackendError, DataError, EdgemmError
from edgemm.runtime._cuda.array import DeviceArray, LentArray, Reader
from edgemm.runtime._cuda.calls import Cuda, Event, Stream
from edgemm.runtime._trt.borders import Border, choose_profile
from edgemm.runtime._trt.loading import said
from edgemm.runtime._trt.module import has, logger, title
from edgemm.runtime._trt.ports import Input, Output, Pending, Run
from edgemm.runtime._trt.recording import Recorder
from edgemm.runtime._trt.sidecar import OptimizationProfile

_MAX_REMEMBERED = 256
"""So many combinations of shapes are remembered with their profile."""


class Execution:
    """An execution context with its stream and memory. Used under the owner's lock."""

    def __init__(
        self,
        trt: Any,
        context: Any,
        borders: tuple[Sequence[Border], Sequence[Border]],
        profiles: Sequence[OptimizationProfile],
        cuda: Cuda,
        *,
        graphs: bool = False,
    ) -> None:
        """Takes over `context`.

        Raises:
            BackendError: CUDA gives no stream.
        """
        self._trt, self._context, self._profiles = trt, context, profiles
        self._borders = borders[0]
        self._inputs = [Input(b, cuda) for b in borders[0]]
        self._outputs = [Output(b, cuda) for b in borders[1]]
        self._ports: list[Input | Output] = [*self._inputs, *self._outputs]
        self._mark = 0
        self._current = int(context.active_optimization_profile)
        self._chosen: dict[tuple[tuple[int, ...], ...], int] = {}
        self._held: deque[tuple[Event, Sequence[Any]]] = deque()
        self._by_value = any(b.on_host for b in borders[0])
        self.reader = Reader(cuda)
        self.stream = Stream(cuda)
        try:
            self._done = Event(cuda)
        except BaseException:
            self.stream.close()
            raise
        # TensorRT-RTX has graphs of its own; what depends on values in host memory cannot be replayed
        own = has(trt, "CudaGraphStrategy") or self._by_value
        self._recorder = Recorder(cuda, self.stream, title(trt)) if graphs and not own else None
        self._cuda = cuda

    def launch(self, feed: Mapping[str, Any], stay: frozenset[str]) -> list[DeviceArray | Pending]:
        """Puts one run on the stream, and returns its results in order; those in `stay` are on the GPU.

        Raises:
            DataError: An input has a wrong dtype, or a shape that no profile takes.
            BackendError: TensorRT or CUDA fails.
        """
        self._mark = len(logger(self._trt).messages)
        self._let_go()
        run = Run(self.reader)
        given: list[DeviceArray | Pending] = []
        try:
            self._place_inputs(feed, run)
            self._place_outputs(run, stay)
            self._enqueue(run)
            for port in self._outputs:
                given.append(port.give(self.stream, run, stays=port.border.name in stay))
            self._done.record(self.stream)
            run.finish(self.stream, self._done)
            self._hold([a for a in run.arrays if isinstance(a, LentArray)])
        except BaseException:
            self._recover(run, given)
            raise
        return given

    def close(self) -> None:
        """Waits for what is under way and frees everything but the arrays that were given."""
        self._cuda.release("cudaStreamSynchronize", self.stream.handle)
        if self._recorder is not None:
            self._recorder.forget()
        self._context = None
        for output in self._outputs:
            output.allocator = None
        while self._held:
            self._held.popleft()[0].close()
        for port in self._ports:
            port.close()
        self.reader.close()
        self._done.close()
        self.stream.close()

    def _place_inputs(self, feed: Mapping[str, Any], run: Run) -> None:
        shapes = {i.border.name: tuple(np.shape(feed[i.border.name])) for i in self._inputs}
        index = self._profile_of(shapes, feed)
        if index != self._current:
            self._told(self._context.set_optimization_profile_async(index, self.stream.handle), "profile")
            self._current = index
            self._forget_shapes()
        changed = self._by_value or any(o.shape is None for o in self._outputs)
        for port in self._inputs:
            name = port.border.name
            address = port.place(feed[name], self.stream, run)
            if port.shape != shapes[name]:
                port.shape = None  # unknown, if TensorRT refuses
                self._told(self._context.set_input_shape(name, shapes[name]), f"shape of '{name}'")
                port.shape, changed = shapes[name], True
            if port.address != address:
                self._told(self._context.set_tensor_address(name, address), f"address of '{name}'")
                port.address = address
        if changed:
            self._infer()

    def _profile_of(self, shapes: Mapping[str, tuple[int, ...]], feed: Mapping[str, Any]) -> int:
        key = tuple(shapes.values())
        if not self._by_value and key in self._chosen:
            return self._chosen[key]
        values = {}
        for border in self._borders:
            if border.on_host:
                if not isinstance(feed[border.name], np.ndarray):
                    raise DataError(
                        f"input '{border.name}' is a shape, which TensorRT reads on the host.",
                        hint="give a numpy array",
                    )
                values[border.name] = feed[border.name]
        index = choose_profile(self._profiles, self._borders, shapes, values)
        if len(self._chosen) >= _MAX_REMEMBERED:
            self._chosen.clear()
        self._chosen[key] = index
        return index

    def _infer(self) -> None:
        try:
            lacking = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._failure("refuses the shapes") from error
        if lacking:
            raise self._failure(f"cannot tell the sizes of {', '.join(lacking)}")
        for port in self._outputs:
            shape = tuple(self._context.get_tensor_shape(port.border.name))
            if port.allocator is None and -1 in shape:
                port.allocator = make_allocator(self._trt)
                self._told(self._context.set_output_allocator(port.border.name, port.allocator), "allocator")
                if self._recorder is not None:
                    self._recorder.forget()
                    self._recorder = None
            port.shape = shape

    def _place_outputs(self, run: Run, stay: frozenset[str]) -> None:
        for port in self._outputs:
            if port.allocator is not None:
                port.allocator.begin(port, self.stream, run)
                continue
            address = port.place(self.stream, run, stays=port.border.name in stay)
            if port.address != address:
                name = port.border.name
                self._told(self._context.set_tensor_address(name, address), f"address of '{name}'")
                port.address = address

    def _enqueue(self, run: Run) -> None:
        if self._recorder is None:
            self._execute()
        else:
            self._recorder.launch((self._current, *((p.shape, p.address) for p in self._ports)), self._execute)
        for port in self._outputs:
            if port.allocator is not None:
                port.allocator.end()

    def _execute(self) -> None:
        try:
            if self._context.execute_async_v3(self.stream.handle):
                return
            error: Exception | None = None
        except RuntimeError as raised:
            error = raised
        for port in self._outputs:
            if port.allocator is not None and port.allocator.error is not None:
                raise port.allocator.error
        raise self._failure("failed while it ran") from error

    def _told(self, answer: bool | None, what: str) -> None:
        """Refuses a False; some versions answer with nothing where they cannot fail."""
        if answer is False:
            raise self._failure(f"refuses the {what}")

    def _failure(self, what: str) -> BackendError:
        return BackendError(
            f"{title(self._trt)} {what}: {said(self._trt, self._mark) or 'it gave no reason'}.",
            hint="check the sizes and values of the inputs; `edgemm inspect` shows what the model takes",
        )

    def _forget_shapes(self) -> None:
        for port in self._ports:
            port.shape, port.address = None, 0

    def _recover(self, run: Run, given: Sequence[DeviceArray | Pending]) -> None:
        """After a failure: nothing is under way, every block is back, and TensorRT is told everything anew."""
        self._cuda.release("cudaStreamSynchronize", self.stream.handle)
        run.give_back()
        for result in given:
            if isinstance(result, Pending):
                with suppress(EdgemmError):
                    result.take()
        self._forget_shapes()
        if self._recorder is not None:
            self._recorder.forget()

    def _hold(self, lent: Sequence[LentArray]) -> None:
        """Keeps other libraries' arrays alive until they are read."""
        if not lent:
            return
        event = Event(self._cuda)
        self._held.append((event, lent))
        event.record(self.stream)

    def _let_go(self) -> None:
        while self._held and self._held[0][0].happened():
            self._held.popleft()[0].close()


def make_allocator(trt: Any) -> Any:
    """Returns an `IOutputAllocator` for an output whose size depends on values.

    TensorRT asks it for memory while it runs. Versions call `reallocate_output` or `reallocate_output_async`; both
    are there. An exception must not reach TensorRT: it is kept in `error`.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.error: EdgemmError | None = None
            self._call: tuple[Output, Stream, Run] | None = None

        def begin(self, port: Output, stream: Stream, run: Run) -> None:
            self._call, self.error = (port, stream, run), None
            self.shapes.clear()

        def end(self) -> None:
            self._call = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            if self._call is None:
                return 0
            port, stream, run = self._call
            try:
                return port.allocate(size, stream, run)
            except EdgemmError as error:
                self.error = error
                return 0

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(shape)

    return Allocator()
