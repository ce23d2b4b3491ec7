"""CUDA for engines on an NVIDIA GPU: through ctypes, without a package. See `edgemm.runtime._cuda`.

    gpu = find_gpu()                      # name, compute capability, memory; an error that says what is missing
    cuda = Cuda(0)
    with cuda.active():
        stream, event = Stream(cuda), Event(cuda)

Every failure is a `BackendError` with CUDA's name for it. Streams do not wait for the default stream, and nothing
uses it.
"""

from __future__ import annotations

from edgemm.runtime._cuda.array import DeviceArray, LentArray, on_device
from edgemm.runtime._cuda.calls import Cuda, Event, Graph, Stream, find_gpu
from edgemm.runtime._cuda.memory import Block, Pool, Slot
from edgemm.runtime._trt.engines import Gpu

__all__ = [
    "Block",
    "Cuda",
    "DeviceArray",
    "Event",
    "Gpu",
    "Graph",
    "LentArray",
    "Pool",
    "Slot",
    "Stream",
    "find_gpu",
    "on_device",
]
