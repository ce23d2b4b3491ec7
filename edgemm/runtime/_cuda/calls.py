"""CUDA on one GPU: checked calls, streams, events and graphs. Nothing uses the default stream.

What frees something never raises: a failure there is logged, and the rest is freed all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_float, c_int, c_size_t, c_void_p, create_string_buffer
from typing import Any

from edgemm.errors import BackendError, UnsupportedDeviceError
from edgemm.runtime._cuda import library
from edgemm.runtime._trt.engines import Gpu

MULTIPROCESSORS, INTEGRATED, CAN_MAP_HOST, MAJOR, MINOR = 16, 18, 19, 75, 76
"""Members of `cudaDeviceAttr`."""

TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3
"""Members of `cudaMemcpyKind`."""

_NON_BLOCKING, _NO_TIMING, _THREAD_LOCAL, _NOT_READY = 1, 2, 1, 600
_OUT_OF_MEMORY = 2
_LOST = range(700, 720)
"""Codes after which every later call of the process fails as well (illegal address, launch failure, ...)."""

_log = logging.getLogger("edgemm")


class Cuda:
    """The CUDA runtime on one GPU.

    Attributes:
        device: Index of the GPU.
        integrated: Whether it shares the memory of the CPU and can read it where it is: no copies then.
    """

    def __init__(self, device: int = 0) -> None:
        """Finds the runtime and the GPU.

        Raises:
            UnsupportedDeviceError: There is no runtime, no driver or no such GPU.
        """
        self.library: Any = library.load_runtime()
        count = c_int()
        self.call("cudaGetDeviceCount", count)
        if not 0 <= device < count.value:
            raise UnsupportedDeviceError(
                f"no GPU {device} here; CUDA finds {count.value}.", hint="GPUs are counted from 0"
            )
        self.device = device
        self.integrated = bool(self.attribute(INTEGRATED) and self.attribute(CAN_MAP_HOST))

    def call(self, name: str, *arguments: Any) -> None:
        """Calls the function `name` of the runtime.

        Raises:
            BackendError: It failed; the message has CUDA's name of the error.
        """
        code = getattr(self.library, name)(*arguments)
        if code:
            raise self.error(name, code)

    def make(self, name: str, *arguments: Any) -> int:
        """Returns the handle or address that `name` writes to its first argument.

        Raises:
            BackendError: It failed.
        """
        made = c_void_p()
        self.call(name, made, *arguments)
        return made.value or 0

    def release(self, name: str, handle: int) -> None:
        """Calls what frees `handle`; a failure is logged."""
        code = getattr(self.library, name)(handle)
        if code:
            self.library.cudaGetLastError()
            _log.warning("%s failed: %s.", name, library.error_name(self.library, code))

    def error(self, name: str, code: int) -> BackendError:
        """Returns the error of a call that gave `code`, which CUDA forgets then."""
        self.library.cudaGetLastError()
        what = (
            f"{name} failed: {library.error_name(self.library, code)}: {library.error_text(self.library, code)}."
        )
        if code in (library.INSUFFICIENT_DRIVER, library.NO_DEVICE, library.INITIALIZATION):
            return UnsupportedDeviceError(what, hint="`nvidia-smi` tells whether driver and GPU work")
        if code == _OUT_OF_MEMORY:
            return BackendError(what, hint="free memory on the GPU, or use smaller batches or fewer sessions")
        if code in _LOST:
            return BackendError(what, hint="the GPU cannot be used any more by this process: start it again")
        return BackendError(what, hint="see NVIDIA's list of CUDA errors; is another process using the GPU?")

    def attribute(self, number: int) -> int:
        """Returns an attribute of the GPU, a member of `cudaDeviceAttr`."""
        value = c_int()
        self.call("cudaDeviceGetAttribute", value, number, self.device)
        return value.value

    def free_memory(self) -> int:
        """Returns the bytes that are free on the GPU."""
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", free, total)
        return free.value

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes this GPU the calling thread's one, and the one before it afterwards.

        Raises:
            BackendError: CUDA refuses.
        """
        before = c_int()
        self.call("cudaGetDevice", before)
        if before.value == self.device:
            yield
            return
        self.call("cudaSetDevice", self.device)
        try:
            yield
        finally:
            self.library.cudaSetDevice(before.value)

    def copy(self, target: int, source: int, size: int, kind: int, stream: Stream) -> None:
        """Copies `size` bytes in the order of `stream`."""
        if size:
            self.call("cudaMemcpyAsync", target, source, size, kind, stream.handle)

    def capture(self, stream: Stream, launch: Callable[[], None]) -> Graph:
        """Returns what `launch` puts on `stream` as a graph; nothing of it runs.

        Raises:
            BackendError: It cannot be recorded, or `launch` failed.
        """
        self.call("cudaStreamBeginCapture", stream.handle, _THREAD_LOCAL)
        graph = c_void_p()
        try:
            launch()
        except BaseException:
            self.library.cudaStreamEndCapture(stream.handle, graph)
            if graph.value:
                self.release("cudaGraphDestroy", graph.value)
            self.library.cudaGetLastError()
            raise
        self.call("cudaStreamEndCapture", stream.handle, graph)
        try:
            code, made = library.instantiate(self.library, graph.value or 0)
        finally:
            self.release("cudaGraphDestroy", graph.value or 0)
        if code:
            raise self.error("cudaGraphInstantiate", code)
        return Graph(self, made)


class Handle:
    """A stream, an event or a graph of CUDA's. Closing it twice does nothing."""

    free = ""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        self.cuda = cuda
        self.handle = handle

    def close(self) -> None:
        """Gives it back to CUDA."""
        handle, self.handle = self.handle, 0
        if handle:
            self.cuda.release(self.free, handle)


class Stream(Handle):
    """A queue of work on the GPU that does not wait for the default stream."""

    free = "cudaStreamDestroy"

    def __init__(self, cuda: Cuda) -> None:
        """Makes one.

        Raises:
            BackendError: CUDA refuses.
        """
        super().__init__(cuda, cuda.make("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def wait(self, event: Event) -> None:
        """Lets what comes later on this stream wait for what `event` was recorded after."""
        if event.handle:
            self.cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Waits until everything on the stream is done; failures of kernels show here."""
        self.cuda.call("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        """Waits for what is under way and gives the stream back."""
        if self.handle:
            self.cuda.release("cudaStreamSynchronize", self.handle)
        super().close()


class Event(Handle):
    """A mark in a stream. One that was never recorded, or is closed, has happened."""

    free = "cudaEventDestroy"

    def __init__(self, cuda: Cuda, *, timing: bool = False) -> None:
        """Makes one.

        Raises:
            BackendError: CUDA refuses.
        """
        super().__init__(cuda, cuda.make("cudaEventCreateWithFlags", 0 if timing else _NO_TIMING))

    def record(self, stream: Stream | int) -> None:
        """Marks what is on `stream` (or on the stream with this handle) now."""
        handle = stream if isinstance(stream, int) else stream.handle
        self.cuda.call("cudaEventRecord", self.handle, handle)

    def synchronize(self) -> None:
        """Waits until it has happened."""
        if self.handle:
            self.cuda.call("cudaEventSynchronize", self.handle)

    def happened(self) -> bool:
        """Returns whether it has."""
        code = self.cuda.library.cudaEventQuery(self.handle) if self.handle else 0
        if code not in (0, _NOT_READY):
            raise self.cuda.error("cudaEventQuery", code)
        return code == 0

    def milliseconds_since(self, start: Event) -> float:
        """Returns the time between two events that were made with `timing` and have happened."""
        elapsed = c_float()
        self.cuda.call("cudaEventElapsedTime", elapsed, start.handle, self.handle)
        return elapsed.value


class Graph(Handle):
    """Recorded work that is launched with one call."""

    free = "cudaGraphExecDestroy"

    def launch(self, stream: Stream) -> None:
        """Puts the work on `stream`."""
        self.cuda.call("cudaGraphLaunch", self.handle, stream.handle)


def find_gpu(device: int = 0) -> Gpu:
    """Returns what engines need to know about the GPU with index `device`.

    Raises:
        UnsupportedDeviceError: There is no CUDA runtime, no driver or no such GPU.
        BackendError: CUDA fails.
    """
    cuda = Cuda(device)
    driver = library.load_driver()
    handle, memory, name = c_int(), c_size_t(), create_string_buffer(256)
    for function, *arguments in (
        ("cuInit", 0),
        ("cuDeviceGet", handle, device),
        ("cuDeviceGetName", name, len(name), handle),
        ("cuDeviceTotalMem_v2", memory, handle),
    ):
        code = getattr(driver, str(function))(*arguments)
        if code:
            raise UnsupportedDeviceError(
                f"{function} failed: the CUDA driver gives error {code}.",
                hint="`nvidia-smi` tells whether driver and GPU work",
            )
    return Gpu(
        name=(c_char_p(name.value).value or b"").decode(errors="replace"),
        sm=10 * cuda.attribute(MAJOR) + cuda.attribute(MINOR),
        multiprocessors=cuda.attribute(MULTIPROCESSORS),
        memory=memory.value,
        integrated=bool(cuda.attribute(INTEGRATED)),
    )
