"""Checks what a session is fed, fully once for each combination of shapes, then at a glance; cuts it in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgemm.errors import DataError
from edgemm.runtime._cuda.array import DeviceArray, LentArray, on_device
from edgemm.runtime.chain import dtype_of, shown
from edgemm.tensors import Feed, IOSpec, check_feed

_MAX_REMEMBERED = 256
"""How many accepted shape combinations are remembered."""

Lend = Callable[[str, Any], LentArray]


class FeedCheck:
    """Checks the feeds of one model as `check_feed` does.

    Attributes:
        names: The inputs, states included.
        accepted: Shapes of these that passed -> whether they run in one go, not in chunks.
        batched: Inputs that are cut into chunks, those with a fixed batch.
    """

    def __init__(self, io: IOSpec, lenders: Mapping[str, Lend], least: Mapping[str, int] | None = None) -> None:
        """Checks feeds for a model with the signature `io`.

        Args:
            io: Of the model.
            lenders: Input -> how an engine on a GPU takes another library's array.
            least: Symbolic dimension -> its smallest size.

        Raises:
            BundleError: numpy has no dtype like that of an input.
        """
        self.accepted: dict[tuple[tuple[int, ...], ...], bool] = {}
        self._io = io
        self._lenders = lenders
        self._least = least or {}
        self._dtypes = tuple((i.name, dtype_of(i)) for i in io.inputs)
        self.names = tuple(name for name, _ in self._dtypes)
        self.size = io.batch if isinstance(io.batch, int) else 0
        self.batched = tuple(i.name for i in io.inputs if self.size and i.shape[:1] == (io.batch,))

    def recognise(self, feed: Feed) -> bool | None:
        """Returns whether `feed` runs in one go, or None when it is not known to be right."""
        if len(feed) != len(self._dtypes):
            return None
        shapes = []
        for name, dtype in self._dtypes:
            array = feed.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or not array.flags.c_contiguous:
                return None
            shapes.append(array.shape)
        return self.accepted.get(tuple(shapes))

    def check(self, feed: Feed) -> None:
        """Checks `feed`, quickly where the same shapes were accepted before.

        Raises:
            DataError: It is not what the model takes.
        """
        if self.recognise(feed) is not None:
            return
        if self._lenders:
            feed = {name: shown(value) for name, value in feed.items()}
        check_feed(self._io, feed)
        check_least(self._io, feed, self._least)
        if len(feed) < len(self._dtypes):
            return  # a state was left out
        if len(self.accepted) >= _MAX_REMEMBERED:
            self.accepted.clear()
        self.accepted[tuple([feed[name].shape for name in self.names])] = self.in_one_go(feed)

    def in_one_go(self, feed: Feed) -> bool:
        """Whether a feed that was checked has as many samples as the model takes at a time."""
        return not self.batched or feed[self.batched[0]].shape[0] == self.size

    def lent(self, feed: Feed) -> Feed:
        """Returns `feed` with arrays of other libraries on a GPU as ones that engines read in the right order.

        Raises:
            DataError: It is no mapping.
        """
        if type(feed) is not dict and not isinstance(feed, Mapping):
            check_feed(self._io, feed)  # says so
        if not self._lenders:
            return feed
        lent: dict[str, Any] = {
            name: self._lenders[name](name, value)
            for name, value in feed.items()
            if name in self._lenders and type(value) is not np.ndarray and on_device(value)
            if not isinstance(value, DeviceArray | LentArray)
        }
        return {**feed, **lent} if lent else feed

    def run_chunks(
        self, feed: Feed, run: Callable[[dict[str, Any]], dict[str, np.ndarray]], *, stay: bool
    ) -> dict[str, np.ndarray]:
        """Returns the results for a feed of any number of samples of a model with a fixed batch.

        Args:
            feed: That was checked.
            run: Gives the results of one chunk.
            stay: Whether the results are to stay on the GPU, which they cannot.

        Raises:
            DataError: No samples, an output that is not one row per sample, or arrays on a GPU.
        """
        size, samples = self.size, feed[self.batched[0]].shape[0]
        self._check_chunks(samples)
        if stay or any(isinstance(value, DeviceArray | LentArray) for value in feed.values()):
            raise DataError(
                f"got {samples} samples; on the GPU, a model with a fixed batch takes exactly {size}.",
                hint=f"give {size} samples at a time, or numpy arrays to run()",
            )
        parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self._io.result_outputs}
        for start in range(0, samples, size):
            values = dict(feed)
            for name in self.batched:
                values[name] = _filled(feed[name][start : start + size], size)
            for name, value in run(values).items():
                parts[name].append(value)
        return {name: np.concatenate(values)[:samples] for name, values in parts.items()}

    def _check_chunks(self, samples: int) -> None:
        if samples == 0:
            raise DataError(
                f"input '{self.batched[0]}': got no samples, the model takes {self.size} at a time.",
                hint="feed at least one sample",
            )
        for spec in self._io.result_outputs:
            if spec.shape[:1] != (self.size,):
                raise DataError(
                    f"got {samples} samples, but the model has a fixed batch of {self.size} and its output "
                    f"'{spec.name}' {list(spec.shape)} is not one row per sample.",
                    hint=f"feed {self.size} samples at a time, or convert the model with a dynamic batch",
                )


def check_least(io: IOSpec, feed: Feed, least: Mapping[str, int]) -> None:
    """Checks that a feed that `check_feed` has let pass is as large as steps in the graph need it.

    Raises:
        DataError: It is smaller; an engine would fail with an error of its own.
    """
    for spec in io.inputs if least else ():
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and spec.name in feed and feed[spec.name].shape[axis] < least.get(dim, 0):
                raise DataError(
                    f"input '{spec.name}': got {feed[spec.name].shape[axis]} in axis {axis} ('{dim}'), its "
                    f"preprocessing needs at least {least[dim]}.",
                    hint="feed more, or convert with the step `fit_length` before those that need them",
                )


def _filled(part: np.ndarray, size: int) -> np.ndarray:
    """Returns `part` with its last row repeated until it has `size` rows."""
    lacking = size - part.shape[0]
    return np.concatenate([part, np.repeat(part[-1:], lacking, axis=0)]) if lacking else part
