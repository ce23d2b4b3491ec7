"""Keeps recurrent states between the calls of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgemm.errors import BundleError, DataError
from edgemm.tensors import Feed, IOSpec, TensorSpec, check_feed


class StateStore:
    """The states of one session: zeros at first, then what each call gave. Not thread-safe by itself.

    Attributes:
        kept: State input name -> value for the next call; empty before the first call.
    """

    def __init__(self, io: IOSpec) -> None:
        """Keeps the states of a model with the signature `io`.

        Raises:
            BundleError: A state's output cannot be its input.
        """
        outputs = {o.name: o for o in io.outputs}
        for state in io.states:
            given, taken = outputs[state.output], io.input(state.input)
            if (given.dtype, len(given.shape)) != (taken.dtype, len(taken.shape)):
                raise BundleError(
                    f"the state '{state.input}' takes {taken}, but '{state.output}' gives {given}.",
                    hint="declare the states again when converting: --state IN=OUT",
                )
        self._io = io
        self._specs = tuple(io.input(s.input) for s in io.states)
        self._sources = tuple((s.input, s.output) for s in io.states)
        self.kept: dict[str, np.ndarray] = {}

    def complete(self, feed: Feed, check: Callable[[Feed], None]) -> dict[str, np.ndarray]:
        """Returns `feed` with the states that it leaves out: the kept ones, else zeros.

        Raises:
            DataError: The feed is wrong, or a kept state has another size than it.
        """
        values = {**self.kept, **feed}
        if len(values) != len(self._io.inputs) or not self.kept:
            self._add_zeros(values, feed)
        try:
            check(values)
        except DataError:
            check_feed(self._io, feed)  # the feed is wrong by itself; say so without the kept states
            self._check_kept(feed)
            raise
        self._check_fixed(values)
        return values

    def keep(self, values: Mapping[str, np.ndarray]) -> None:
        """Keeps the states that a call gave."""
        self.kept = {taken: values[given] for taken, given in self._sources}

    def _add_zeros(self, values: dict[str, np.ndarray], feed: Feed) -> None:
        lacking = [spec for spec in self._specs if spec.name not in values]
        if not lacking:
            return
        check_feed(self._io, feed)
        sizes = _sizes(self._io, values)
        if isinstance(self._io.batch, str):
            sizes.setdefault(self._io.batch, 1)
        for spec in lacking:
            shape = [d if isinstance(d, int) else sizes.get(d, 0) for d in spec.shape]
            values[spec.name] = np.zeros(shape, np.dtype(spec.dtype))

    def _check_kept(self, feed: Feed) -> None:
        sizes = _sizes(self._io, feed)
        for spec in self._specs:
            value = self.kept.get(spec.name)
            if value is None or spec.name in feed:
                continue
            for axis, dim in enumerate(spec.shape):
                want = sizes.get(dim, value.shape[axis]) if isinstance(dim, str) else dim
                if want != value.shape[axis]:
                    raise DataError(
                        f"the kept state '{spec.name}' has shape {value.shape}; this call needs {want} "
                        f"on axis {axis} ('{dim}').",
                        hint="call reset_state() before another batch size, or give the state in the feed",
                    )

    def _check_fixed(self, values: Feed) -> None:
        """A model with states runs no chunks: a fixed batch must be met exactly."""
        if not isinstance(self._io.batch, int):
            return
        for spec in self._io.inputs:
            got = values[spec.name].shape
            if spec.shape[:1] == (self._io.batch,) and got[0] != self._io.batch:
                raise DataError(
                    f"input '{spec.name}': got {got[0]} samples; a model with states and a fixed batch takes "
                    f"exactly {self._io.batch}.",
                    hint=f"feed {self._io.batch} at a time, or convert the model with a dynamic batch",
                )


def _sizes(io: IOSpec, values: Feed) -> dict[str, int]:
    """Returns the size of each symbolic dimension that the arrays in `values` show."""
    present: list[tuple[TensorSpec, np.ndarray]] = [(i, values[i.name]) for i in io.inputs if i.name in values]
    return {
        dim: size
        for spec, value in present
        for dim, size in zip(spec.shape, value.shape, strict=True)
        if isinstance(dim, str)
    }
