"""The asyncio front of a stream: waits in the event loop, runs in its executor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edgemm.errors import StreamError

if TYPE_CHECKING:
    from edgemm.runtime.stream import Stream
    from edgemm.runtime.stream_result import Result


class Front:
    """Waits for results of one stream. A run that was begun goes on when its waiter is cancelled."""

    def __init__(self, stream: Stream) -> None:
        """Belongs to the loop that runs now."""
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._run: asyncio.Future[Result | None] | None = None

    def wake(self) -> None:
        """Lets the waiter look again; from any thread."""
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:
                if not self._loop.is_closed():  # it was closed in between
                    raise

    def is_here(self) -> bool:
        """Whether the calling thread is the loop's."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    async def next(self) -> Result | None:
        """Waits for the next result; returns None when there will be none.

        Raises:
            StreamError: Called in another loop than before.
            EdgemmError: The run failed.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise StreamError("the stream is iterated in another event loop.", hint="begin another stream there")
        while True:
            if self._run is None:
                self._event.clear()
                try:
                    ready, seconds = self._stream.look()
                except StopIteration:
                    return None
                if not ready:
                    await self._sleep(seconds)
                    continue
                self._run = self._loop.run_in_executor(None, self._stream.poll)
            run = self._run
            try:
                result = await asyncio.shield(run)
            except asyncio.CancelledError:
                if run.cancelled():
                    self._run = None
                raise
            except StreamError:
                self._run = None
                continue  # closed while it began: `look` says so
            except BaseException:
                self._run = None
                raise
            self._run = None
            if result is not None:
                return result

    async def _sleep(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return
