"""Counts the calls of a session that are under way, bounds them, and keeps them out while the session changes.

A call goes through without a lock: it adds itself to a set, looks whether anybody attends the gate, and takes
itself out at the end. Whoever closes or changes the session first attends the gate and then looks into the set,
so one of the two always sees the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from edgemm.errors import BundleError, BusyError, DataError


class Gate:
    """Where the calls of one session come in.

        call = object()
        try:
            gate.calls.add(call)
            if gate.attended:
                gate.stop(call)
            ...
        finally:
            gate.calls.discard(call)
            if gate.attended:
                gate.left()

    `FusionSession.run` has it written out, since a context manager costs more than checking a feed; `entered` is
    the same for everybody else. The call is added inside of `try`: after a Ctrl-C anywhere in it nothing is left.

    Attributes:
        calls: Those under way.
        attended: Whether calls have to stop, and to tell when they end.
        name: What errors call the session.
    """

    def __init__(self, name: str) -> None:
        """Lets every call in, as many as come."""
        self.calls: set[object] = set()
        self.attended = False
        self.name = name
        self._closed = self._alone = False
        self._most: int | None = None
        self._max_wait: float | None = None
        self._moved = threading.Condition()

    def limit(self, most: int | None, max_wait: float | None = None) -> None:
        """Sets how many calls may be under way at once, and how many seconds one waits for its turn.

        Args:
            most: 1 or more; None for any number.
            max_wait: 0 refuses at once what is too much; None waits as long as it takes.

        Raises:
            DataError: A number out of range.
        """
        check_limit(most, max_wait)
        with self._moved:
            self._most, self._max_wait = most, max_wait
            self._attend()
            self._moved.notify_all()

    def stop(self, call: object, *, in_turn: bool = True) -> None:
        """Waits until `call`, which has added itself, may go on. While it waits it is not under way.

        Raises:
            BundleError: The session is closed.
            BusyError: `max_wait` is over and there are as many calls as there may be.
        """
        end: float | None = None
        with self._moved:
            self.calls.discard(call)
            self._moved.notify_all()
            while not self._closed:
                if self._alone:
                    self._moved.wait()
                elif not in_turn or self._most is None or len(self.calls) < self._most:
                    self.calls.add(call)
                    return
                elif self._max_wait is None:
                    self._moved.wait()
                else:
                    end = monotonic() + self._max_wait if end is None else end
                    self._wait_until(end)
            raise self._refusal()

    def left(self) -> None:
        """Tells whoever waits that a call has ended."""
        with self._moved:
            self._moved.notify_all()

    @contextmanager
    def entered(self, *, in_turn: bool = True) -> Iterator[None]:
        """Is one call.

        Args:
            in_turn: Whether it waits for its turn; short ones that run no engine need not.

        Raises:
            BundleError: The session is closed.
            BusyError: There are as many calls as there may be.
        """
        call = object()
        try:
            self.calls.add(call)
            if self.attended:
                self.stop(call, in_turn=in_turn)
            yield
        finally:
            self.calls.discard(call)
            if self.attended:
                self.left()

    @contextmanager
    def alone(self, patience: float) -> Iterator[None]:
        """Lets the calls under way end and keeps others waiting until its block is through.

        Args:
            patience: Most seconds that the calls under way may take to end.

        Raises:
            BundleError: The session is closed.
            BusyError: They took longer; the calls that waited go on.
        """
        with self._moved:
            self._moved.wait_for(lambda: not self._alone)
            self._alone = True
            self._attend()
            try:
                if not self._moved.wait_for(lambda: self._closed or not self.calls, patience):
                    raise BusyError(
                        f"'{self.name}': a call is under way for more than {patience:g} s, nothing was changed.",
                        hint="try again when it has ended",
                    )
                if self._closed:
                    raise self._refusal()
                yield
            finally:
                self._alone = False
                self._attend()
                self._moved.notify_all()

    def close(self) -> None:
        """Refuses calls from now on, those that wait too, and waits for those under way to end."""
        with self._moved:
            self._closed = True
            self._attend()
            self._moved.notify_all()
            self._moved.wait_for(lambda: not self.calls and not self._alone)

    def _attend(self) -> None:
        self.attended = self._closed or self._alone or self._most is not None

    def _wait_until(self, end: float) -> None:
        left = end - monotonic()
        if left <= 0:
            raise BusyError(
                f"'{self.name}': {len(self.calls)} calls are under way, max_in_flight allows {self._most}.",
                hint="make fewer calls at once, leave this one out, or allow a longer max_wait",
            )
        self._moved.wait(left)

    def _refusal(self) -> BundleError:
        return BundleError(f"the session on '{self.name}' is closed.", hint="open it again")


def check_limit(most: int | None, max_wait: float | None = None) -> None:
    """Checks what `Gate.limit` is asked for.

    Raises:
        DataError: A number out of range.
    """
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise DataError(f"max_in_flight: got {most!r}, expected 1 or more calls.", hint="None sets no limit")
    if max_wait is not None and not (isinstance(max_wait, (int, float)) and 0 <= max_wait < math.inf):
        raise DataError(
            f"max_wait: got {max_wait!r}, expected seconds, 0 or more.",
            hint="0 refuses at once, None waits as long as it takes",
        )
