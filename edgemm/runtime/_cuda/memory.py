"""Memory that the GPU reads: on it, or pinned on the host; and a pool that hands out and takes back blocks.

A block remembers the events after which it may be used again: whoever takes it from a pool waits for them, on the
host or in a stream.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from edgemm.errors import BackendError
from edgemm.runtime._cuda.calls import Cuda, Event, Stream

ALIGNMENT = 256
"""Alignment of every address that TensorRT takes, and the smallest block: an empty tensor has an address, too."""

_SMALL, _PAGE = 2**20, 2**21
_PORTABLE, _MAPPED = 1, 2

_log = logging.getLogger("edgemm")


class Block:
    """A piece of memory with an event of its own. Closing it twice does nothing.

    Attributes:
        size: Bytes.
        pointer: Address on the GPU; 0 for pinned memory that the GPU does not read by itself.
        host: The bytes of pinned memory as an array, None on the GPU.
        written: Recorded after what filled or emptied the block last.
        readers: Events after which what else reads the block is done.
        lent: Whether another library has read it, in an order that cannot be seen: the GPU is waited for then.
    """

    def __init__(self, cuda: Cuda, size: int, *, pinned: bool) -> None:
        """Allocates it.

        Raises:
            BackendError: There is not enough memory, or CUDA fails.
        """
        self.cuda = cuda
        self.size = _rounded(size)
        self.pointer = 0
        self.host: np.ndarray | None = None
        self.readers: set[Event] = set()
        self.lent = False
        self.written = Event(cuda)
        self._address = 0
        self._pinned = pinned
        try:
            if pinned:
                self._pin()
            else:
                self._address = self.pointer = cuda.make("cudaMalloc", self.size)
        except BaseException:
            self.close()
            raise

    def _pin(self) -> None:
        mapped = self.cuda.integrated
        self._address = self.cuda.make("cudaHostAlloc", self.size, _PORTABLE | (_MAPPED if mapped else 0))
        if mapped:
            self.pointer = self.cuda.make("cudaHostGetDevicePointer", self._address, 0)
        memory: Any = (ctypes.c_uint8 * self.size).from_address(self._address)
        self.host = np.frombuffer(memory, np.uint8)

    @property
    def address(self) -> int:
        """Where it is: for pinned memory the address on the host."""
        return self._address

    def wait_on_host(self) -> None:
        """Waits until nothing uses the block any more."""
        self._wait_for_others()
        self.written.synchronize()
        for event in self.readers:
            event.synchronize()
        self.readers.clear()

    def wait_in(self, stream: Stream) -> None:
        """Lets `stream` wait until nothing uses the block any more."""
        self._wait_for_others()
        stream.wait(self.written)
        for event in self.readers:
            stream.wait(event)
        self.readers.clear()

    def _wait_for_others(self) -> None:
        if self.lent:
            self.cuda.call("cudaDeviceSynchronize")
            self.lent = False

    def close(self) -> None:
        """Frees it."""
        self.host = None
        address, self._address, self.pointer = self._address, 0, 0
        if address:
            self.cuda.release("cudaFreeHost" if self._pinned else "cudaFree", address)
        self.written.close()


class Pool:
    """Blocks of one kind. `take` and `close` are called under the owner's lock, `give` from anywhere."""

    def __init__(self, cuda: Cuda, *, pinned: bool) -> None:
        self._cuda = cuda
        self._pinned = pinned
        self._free: deque[Block] = deque()
        self._closed = False

    def take(self, size: int) -> Block:
        """Returns a block of at least `size` bytes; what used it before may be under way still.

        Raises:
            BackendError: There is not enough memory.
        """
        if len(self._free) == 1 and self._free[0].size >= size:  # as in a steady stream of calls
            return self._free.popleft()
        waiting = [self._free.popleft() for _ in range(len(self._free))]
        fitting = [b for b in waiting if b.size >= size]
        best = min(fitting, key=lambda b: b.size, default=None)
        if best is None and waiting:  # none is large enough: one that is too small makes room
            small = waiting.pop(0)
            self._discard(small)
        self._free.extendleft(b for b in reversed(waiting) if b is not best)
        return best or Block(self._cuda, size, pinned=self._pinned)

    def give(self, block: Block) -> None:
        """Takes a block back."""
        if self._closed:
            self._discard(block)
        else:
            self._free.append(block)

    def close(self) -> None:
        """Frees the blocks that are here, and those that come back later at once."""
        self._closed = True
        while self._free:
            self._discard(self._free.popleft())

    @staticmethod
    def _discard(block: Block) -> None:
        try:
            block.wait_on_host()
        except BackendError as error:
            _log.warning("%s", str(error))
        block.close()


class Slot:
    """One block that grows, used by one stream only: no events are needed."""

    def __init__(self, take: Callable[[int], Block]) -> None:
        self._take = take
        self.block: Block | None = None

    def at_least(self, size: int, stream: Stream) -> Block:
        """Returns a block of at least `size` bytes, the same one as long as it is large enough.

        Raises:
            BackendError: There is not enough memory.
        """
        block = self.block
        if block is None or block.size < size:
            if block is not None:
                stream.synchronize()
                self.close()
            self.block = block = self._take(size)
        return block

    def close(self) -> None:
        """Frees it."""
        block, self.block = self.block, None
        if block is not None:
            block.close()


def _rounded(size: int) -> int:
    step = ALIGNMENT if size <= _SMALL else _PAGE
    return max(ALIGNMENT, -(-size // step) * step)
