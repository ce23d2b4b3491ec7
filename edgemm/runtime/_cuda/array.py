"""Arrays on the GPU: those that engines give, and those that other libraries lend."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np

from edgemm.errors import DataError
from edgemm.runtime._cuda import dlpack
from edgemm.runtime._cuda.calls import TO_HOST, Cuda, Event, Stream
from edgemm.runtime._cuda.dtypes import STORED, decode, host_dtype, storage
from edgemm.runtime._cuda.memory import Block, Pool

_HOST_SYNC = (None, 1, 2)
"""DLPack's streams for which the host waits: none named, and the two default streams, which edgemm never uses."""


class _Sized:
    """An array with `shape` and the name of its `dtype`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def ndim(self) -> int:
        """Number of its axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return prod(self.shape) * storage(self.dtype).itemsize


class Reader:
    """Copies to the host on a stream of its own, through pinned memory that is used again."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._lock = threading.Lock()
        self._pool = Pool(cuda, pinned=True)
        self._stream: Stream | None = None
        self._closed = False

    def read(self, array: DeviceArray | LentArray) -> np.ndarray:
        """Returns a copy of `array` when it is computed.

        Raises:
            BackendError: What computes it failed, or the copy.
        """
        size = array.nbytes
        with self._lock, self._cuda.active():
            try:
                stream = self._stream = self._stream or Stream(self._cuda)
                pinned = self._pool.take(size)
                try:
                    array.before(stream)
                    self._cuda.copy(pinned.address, array.pointer, size, TO_HOST, stream)
                    stream.synchronize()
                    return from_bytes(pinned, array.shape, array.dtype)
                finally:
                    self._pool.give(pinned)
            finally:
                if self._closed:
                    self._free()

    def close(self) -> None:
        """Frees what it holds; arrays that are left can still be read, at the cost of allocating each time."""
        with self._lock:
            self._closed = True
            self._free()

    def _free(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._pool.close()


class DeviceArray(_Sized):
    """An output that stayed on the GPU, in C order. It may be computed still; who reads it waits for that.

    It offers `__cuda_array_interface__` (version 3) and DLPack, so that torch, cupy, numba and others take it
    without a copy, and `numpy()`. Its memory is used again when the last reference to it is gone: whoever still
    has work on the GPU that reads it keeps it until then.

    Attributes:
        shape: Its sizes.
        dtype: Name of its dtype; `"bfloat16"` and `"float8_e4m3fn"` are possible, which numpy lacks.
        device: Index of the GPU.
    """

    def __init__(self, block: Block, pool: Pool, shape: tuple[int, ...], dtype: str, reader: Reader) -> None:
        """Takes over `block`, whose event `written` is after what computes it; `pool` gets it back."""
        self.shape, self.dtype = shape, dtype
        self._reader = reader
        self.device = block.cuda.device
        self._block = block
        self._pool = pool
        self._lent = False

    @property
    def pointer(self) -> int:
        """Its address on the GPU."""
        return self._block.pointer

    def wait(self) -> None:
        """Waits until it is computed.

        Raises:
            BackendError: What computes it failed.
        """
        self._block.written.synchronize()

    def before(self, stream: Stream) -> None:
        """Lets what comes on `stream` wait until it is computed."""
        stream.wait(self._block.written)

    def read_until(self, event: Event) -> None:
        """Keeps its memory from being written to before `event`."""
        self._block.readers.add(event)

    def numpy(self) -> np.ndarray:
        """Returns a copy on the host, float32 for a dtype that numpy lacks.

        Raises:
            BackendError: What computes it failed, or the copy.
        """
        return self._reader.read(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns `numpy()`: a copy, always."""
        if copy is False:
            raise ValueError("an array on the GPU reaches numpy by a copy only")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA Array Interface, version 3. The host waits until the array is computed: no stream is named."""
        if STORED[self.dtype] != self.dtype:
            raise AttributeError(f"the CUDA Array Interface has no {self.dtype}; take it through DLPack")
        self.wait()
        self._lent = True
        return {
            "shape": self.shape,
            "typestr": storage(self.dtype).str,
            "data": (self.pointer if 0 not in self.shape else 0, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device: CUDA and its index."""
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Returns a DLPack capsule; the consumer's `stream` waits until it is computed, or the host does."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("an array of edgemm is lent as it is: without a copy, on its own GPU")
        cuda = self._block.cuda
        if stream in _HOST_SYNC:
            self.wait()
        elif stream != -1:
            cuda.call("cudaStreamWaitEvent", stream, self._block.written.handle, 0)
        self._lent = True
        return dlpack.export(self.pointer, self.shape, self.dtype, self.device, self)

    def __repr__(self) -> str:
        return f"<DeviceArray {list(self.shape)} {self.dtype} on GPU {self.device}>"

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is None:
            return
        if self._lent:  # others' work on it cannot be seen: who takes the block next waits for the whole GPU
            block.lent = True
        self._pool.give(block)


class LentArray(_Sized):
    """An array of another library on the GPU, read where it is. Has what engines need of a `DeviceArray`.

    Attributes:
        shape: Its sizes.
        dtype: Name of its dtype.
        pointer: Its address.
        value: What was taken; it is kept alive.
    """

    def __init__(self, value: Any, name: str, stream: Stream) -> None:
        """Takes `value` in the order of `stream`, which waits for whatever computes it.

        Args:
            value: Offers DLPack or `__cuda_array_interface__`.
            name: Of the input, for messages.
            stream: Of the reader.

        Raises:
            DataError: It is on another GPU, not in C order, or of a dtype that no engine takes.
            BackendError: CUDA fails.
        """
        found = (
            _by_dlpack(value, name, stream) if hasattr(value, "__dlpack__") else _by_interface(value, name, stream)
        )
        if found.device not in (-1, stream.cuda.device):
            raise DataError(
                f"input '{name}': it is on GPU {found.device}, the session on GPU {stream.cuda.device}.",
                hint="move it to the session's GPU",
            )
        if not found.contiguous:
            raise DataError(f"input '{name}': the array is not C-contiguous.", hint="copy it: x.contiguous()")
        if found.dtype not in STORED:
            raise DataError(
                f"input '{name}': got {found.dtype or 'a dtype'} that no engine takes.", hint="convert it first"
            )
        self.shape, self.dtype, self.pointer = found.shape, found.dtype, found.pointer
        self.value, self._owner = value, found.owner
        self._ready = Event(stream.cuda)
        try:
            self._ready.record(stream)
        except BaseException:
            self._ready.close()
            raise

    def before(self, stream: Stream) -> None:
        """Lets what comes on `stream` wait until it is computed."""
        stream.wait(self._ready)

    def numpy(self) -> np.ndarray:
        """Returns a copy on the host, for engines that are there.

        Raises:
            BackendError: CUDA fails.
        """
        reader = Reader(self._ready.cuda)
        try:
            return reader.read(self)
        finally:
            reader.close()

    def __del__(self) -> None:
        ready = getattr(self, "_ready", None)
        if ready is not None:
            ready.close()


def on_device(value: Any) -> bool:
    """Returns whether `value` is an array on a CUDA GPU, of edgemm's or of another library's."""
    if isinstance(value, DeviceArray | LentArray):
        return True
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return bool(value.__dlpack_device__()[0] == dlpack.CUDA)
    return hasattr(value, "__cuda_array_interface__")


def from_bytes(block: Block, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Returns a copy of what is in pinned memory as an array of the host."""
    assert block.host is not None
    stored = storage(dtype)
    raw = block.host[: prod(shape) * stored.itemsize].view(stored).reshape(shape)
    return raw.copy() if host_dtype(dtype) == dtype else decode(raw, dtype)


def _by_dlpack(value: Any, name: str, stream: Stream) -> dlpack.Imported:
    try:
        return dlpack.take(value.__dlpack__(stream=stream.handle))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"input '{name}': the {type(value).__name__} cannot be read where it is: {error}",
            hint="detach it from autograd and make it contiguous, or give a numpy array",
        ) from error


def _by_interface(value: Any, name: str, stream: Stream) -> dlpack.Imported:
    """Reads `__cuda_array_interface__`; without a stream in it (version 2, or None) no order is asked for."""
    try:
        said = value.__cuda_array_interface__
        shape = tuple(int(size) for size in said["shape"])
        dtype = np.dtype(said["typestr"])
        strides = said.get("strides")
        pointer, producer, masked = said["data"][0], said.get("stream"), said.get("mask")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"input '{name}': the __cuda_array_interface__ of the {type(value).__name__} is damaged: {error}",
            hint="give a numpy array",
        ) from error
    if masked is not None:
        raise DataError(f"input '{name}': a masked array.", hint="fill the mask in first")
    if producer is not None:
        event = Event(stream.cuda)
        try:
            event.record(int(producer))
            stream.wait(event)
        finally:
            event.close()
    steps = None if strides is None else tuple(s // dtype.itemsize for s in strides)
    name_of = dtype.name if dtype.isnative else ""
    return dlpack.Imported(int(pointer or 0), shape, name_of, -1, dlpack.contiguous(shape, steps), value)
