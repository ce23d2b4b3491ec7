"""Inputs and outputs of one execution context: where their bytes are, and what TensorRT was told of them.

On a GPU with memory of its own, arrays of the host go through pinned memory; on one that shares the host's memory
TensorRT reads and writes the pinned memory itself. Arrays on the GPU are read where they are.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgemm.errors import BackendError, DataError
from edgemm.runtime._cuda.array import DeviceArray, LentArray, from_bytes, on_device
from edgemm.runtime._cuda.calls import ON_DEVICE, TO_DEVICE, TO_HOST, Cuda, Event, Stream
from edgemm.runtime._cuda.dtypes import STORED, encode, storage
from edgemm.runtime._cuda.memory import ALIGNMENT, Block, Pool, Slot
from edgemm.runtime._trt.borders import Border


class Input:
    """One input of a context. Used under the owner's lock.

    Attributes:
        border: Name, dtype and place.
        shape: That TensorRT was told last, None before.
        address: That TensorRT was told last.
    """

    def __init__(self, border: Border, cuda: Cuda) -> None:
        self.border = border
        self.shape: tuple[int, ...] | None = None
        self.address = 0
        self._cuda = cuda
        self._dtype = np.dtype(border.dtype) if STORED[border.dtype] == border.dtype else None
        self._pinned = Pool(cuda, pinned=True)
        self._slot = Slot(lambda size: Block(cuda, size, pinned=False))

    def place(self, value: Any, stream: Stream, run: Run) -> int:
        """Returns the address of `value` for TensorRT; what is needed until it is read goes to `run`.

        Raises:
            DataError: A wrong dtype, or an array on the GPU where TensorRT needs one on the host.
            BackendError: CUDA fails.
        """
        if type(value) is not np.ndarray and on_device(value):
            return self._place_device(value, stream, run)
        array = self._checked(value)
        block = self._pinned.take(array.nbytes)
        run.taken.append((self._pinned, block))
        block.wait_on_host()
        assert block.host is not None
        np.copyto(block.host[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        if self._cuda.integrated or self.border.on_host:
            run.read.append(block)
            return block.address if self.border.on_host else block.pointer
        pointer = self._slot.at_least(array.nbytes, stream).pointer
        self._cuda.copy(pointer, block.address, array.nbytes, TO_DEVICE, stream)
        block.written.record(stream)
        return pointer

    def close(self) -> None:
        """Frees its memory."""
        self._pinned.close()
        self._slot.close()

    def _place_device(self, value: Any, stream: Stream, run: Run) -> int:
        border = self.border
        if border.on_host:
            raise DataError(
                f"input '{border.name}' is a shape, which TensorRT reads on the host; got an array on the GPU.",
                hint="give a numpy array",
            )
        array = value if isinstance(value, DeviceArray | LentArray) else LentArray(value, border.name, stream)
        if isinstance(array, DeviceArray) and array.device != self._cuda.device:
            raise DataError(
                f"input '{border.name}': it is on GPU {array.device}, the session on GPU {self._cuda.device}.",
                hint="open both sessions on one GPU",
            )
        if array.dtype != border.dtype:
            raise DataError(
                f"input '{border.name}': got {array.dtype} on the GPU, the engine takes {border.dtype}.",
                hint=f"convert it there to {border.dtype}, or give a numpy array of {border.spec.dtype}",
            )
        array.before(stream)
        run.arrays.append(array)
        if array.pointer and array.pointer % ALIGNMENT == 0:
            return array.pointer
        pointer = self._slot.at_least(array.nbytes, stream).pointer  # TensorRT reads aligned addresses only
        self._cuda.copy(pointer, array.pointer, array.nbytes, ON_DEVICE, stream)
        return pointer

    def _checked(self, array: Any) -> np.ndarray:
        """Returns the array with the bytes that the engine reads."""
        if type(array) is np.ndarray and array.dtype == self._dtype:
            return array
        border = self.border
        if isinstance(array, np.ndarray) and not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        got = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
        if got == border.dtype:
            stored: np.ndarray = array.view(storage(border.dtype))
            return stored
        if got == "float32" and STORED[border.dtype] != border.dtype:
            return encode(array, border.dtype)
        if got == "int64" and border.dtype == "int32":
            return _narrow(array, border.name)
        raise DataError(
            f"input '{border.name}': got {got}, the engine takes {border.spec.dtype}.",
            hint=f"convert it: {border.name}.astype('{border.spec.dtype}')",
        )


class Output:
    """One output of a context. Used under the owner's lock.

    Attributes:
        border: Name, dtype and place.
        shape: That TensorRT inferred last, None before, and of outputs whose size depends on values.
        address: That TensorRT was told last.
        allocator: Of an output whose size depends on values.
    """

    def __init__(self, border: Border, cuda: Cuda) -> None:
        self.border = border
        self.shape: tuple[int, ...] | None = None
        self.address = 0
        self.allocator: Any = None
        self._cuda = cuda
        self._pinned = Pool(cuda, pinned=True)
        self._device = Pool(cuda, pinned=False)
        self._slot = Slot(lambda size: Block(cuda, size, pinned=False))

    def place(self, stream: Stream, run: Run, *, stays: bool) -> int:
        """Returns the address where TensorRT writes; `stays`: the result is not needed on the host.

        Raises:
            BackendError: CUDA fails.
        """
        assert self.shape is not None
        size = prod(self.shape) * storage(self.border.dtype).itemsize
        if self.border.on_host or (self._cuda.integrated and not stays):
            block = self._pinned.take(size)
            run.taken.append((self._pinned, block))
            block.wait_on_host()
            run.blocks[self.border.name] = block
            return block.address if self.border.on_host else block.pointer
        if stays:
            return self.allocate(size, stream, run)
        return self._slot.at_least(size, stream).pointer

    def allocate(self, size: int, stream: Stream, run: Run) -> int:
        """Returns the address of a block on the GPU that will be the result's own.

        Raises:
            BackendError: There is not enough memory.
        """
        block = run.blocks.get(self.border.name)
        if block is None or block.size < size:
            block = self._device.take(size)
            run.taken.append((self._device, block))
            block.wait_in(stream)
            run.blocks[self.border.name] = block
        return block.pointer

    def give(self, stream: Stream, run: Run, *, stays: bool) -> DeviceArray | Pending:
        """Returns the result of work that was put on `stream`.

        Raises:
            BackendError: CUDA fails.
        """
        border = self.border
        shape = self.shape if self.allocator is None else self.allocator.shapes.get(border.name)
        if shape is None:
            raise BackendError(
                f"TensorRT did not tell the shape of output '{border.name}'.",
                hint="update TensorRT on this device",
            )
        if self.allocator is not None and border.name not in run.blocks:
            self.allocate(0, stream, run)  # nothing came out, and TensorRT asked for no memory
        block = run.blocks.get(border.name)
        if block is not None:
            block.written.record(stream)
            if block.host is not None:
                return Pending(run.keep(block), block, shape, border)
            if stays:
                return DeviceArray(block, run.keep(block), shape, border.dtype, run.reader)
            source = block.pointer
        else:
            source = self.address
        size = prod(shape) * storage(border.dtype).itemsize
        pinned = self._pinned.take(size)
        run.taken.append((self._pinned, pinned))
        pinned.wait_on_host()
        self._cuda.copy(pinned.address, source, size, TO_HOST, stream)
        pinned.written.record(stream)
        if block is not None:
            block.written.record(stream)
        return Pending(run.keep(pinned), pinned, shape, border)

    def close(self) -> None:
        """Frees its memory; arrays that were given keep theirs."""
        self._pinned.close()
        self._device.close()
        self._slot.close()


class Pending:
    """A result on its way to the host."""

    def __init__(self, pool: Pool, block: Block, shape: tuple[int, ...], border: Border) -> None:
        self._pool, self._block, self._shape, self._border = pool, block, shape, border

    def take(self) -> np.ndarray:
        """Waits for the result and returns it; to be called once.

        Raises:
            BackendError: What computes it failed.
        """
        try:
            self._block.written.synchronize()
            array = from_bytes(self._block, self._shape, self._border.dtype)
        finally:
            self._pool.give(self._block)
        wide = self._border.spec.dtype == "int64" and array.dtype == np.int32
        return array.astype(np.int64) if wide else array


class Run:
    """What one launch uses until it is done.

    Attributes:
        taken: Blocks, and the pools that they go back to.
        read: Pinned blocks that TensorRT itself reads.
        arrays: Inputs on the GPU.
        blocks: Output -> block that TensorRT writes to.
        reader: For arrays that stay on the GPU.
    """

    def __init__(self, reader: Any) -> None:
        self.taken: list[tuple[Pool, Block]] = []
        self.read: list[Block] = []
        self.arrays: list[DeviceArray | LentArray] = []
        self.blocks: dict[str, Block] = {}
        self.reader = reader

    def keep(self, block: Block) -> Pool:
        """Returns the pool of `block`, which somebody else gives back from now on."""
        for index, (pool, taken) in enumerate(self.taken):
            if taken is block:
                del self.taken[index]
                return pool
        raise AssertionError("a block that was not taken")

    def finish(self, stream: Stream, done: Event) -> None:
        """Gives back what only the stream uses now, after `done` was recorded on it.

        Raises:
            BackendError: CUDA fails.
        """
        for block in self.read:
            block.written.record(stream)
        for array in self.arrays:
            if isinstance(array, DeviceArray):
                array.read_until(done)
        self.give_back()

    def give_back(self) -> None:
        """Gives back every block that was taken and not kept."""
        while self.taken:
            pool, block = self.taken.pop()
            pool.give(block)


def _narrow(array: np.ndarray, name: str) -> np.ndarray:
    """Returns int64 as int32: TensorRT 8 has no int64.

    Raises:
        DataError: A value does not fit.
    """
    limits = np.iinfo(np.int32)
    if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
        worst = array.max() if array.max() > limits.max else array.min()
        raise DataError(
            f"input '{name}': the value {worst} does not fit into int32, which this TensorRT computes int64 in.",
            hint="use a TensorRT from version 10 on, or smaller values",
        )
    return array.astype(np.int32)
