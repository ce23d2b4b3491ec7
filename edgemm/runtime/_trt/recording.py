"""Replays TensorRT's launches as a CUDA graph while nothing but values changes.

A graph holds the addresses and, by way of the execution context, the shapes that it was recorded with: any change
throws it away (NVIDIA, TensorRT developer guide, "CUDA Graphs"). TensorRT may do work of its own at the first
launch with new shapes, so that the second one is recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

from edgemm.errors import BackendError
from edgemm.runtime._cuda.calls import Cuda, Graph, Stream

_log = logging.getLogger("edgemm")


class Recorder:
    """One graph of one execution context. Used under the owner's lock."""

    def __init__(self, cuda: Cuda, stream: Stream, name: str) -> None:
        self._cuda, self._stream, self._name = cuda, stream, name
        self._graph: Graph | None = None
        self._key: Hashable = None
        self._possible = True

    def launch(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Puts the work of `enqueue` on the stream, recorded if `key` is that of the call before.

        Raises:
            BackendError: The work is refused.
        """
        if not self._possible:
            enqueue()
        elif key != self._key:
            self.forget()
            enqueue()
            self._key = key
        else:
            if self._graph is None and not self._record(enqueue):
                enqueue()
                return
            assert self._graph is not None
            self._graph.launch(self._stream)

    def forget(self) -> None:
        """Throws the graph away."""
        graph, self._graph, self._key = self._graph, None, None
        if graph is not None:
            self._cuda.release("cudaStreamSynchronize", self._stream.handle)  # it may be running
            graph.close()

    def _record(self, enqueue: Callable[[], None]) -> bool:
        try:
            self._graph = self._cuda.capture(self._stream, enqueue)
        except BackendError as error:
            self._possible = False
            _log.warning("engine '%s' runs without a CUDA graph: %s", self._name, str(error))
            return False
        return True
