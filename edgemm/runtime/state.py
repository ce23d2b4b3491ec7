"""Keeps recurrent states between the calls of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgemm.errors import BundleError, DataError, did_you_mean
from edgemm.tensors import Feed, IOSpec, check_feed


class StateStore:
    """The states of one session: zeros at first, then what each call gave. Not thread-safe by itself.

    Attributes:
        kept: State input name -> value for the next call; empty before the first call.
        specs: The state inputs.
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
        self.specs = tuple(io.input(s.input) for s in io.states)
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

    def check_samples(self, values: Feed, samples: int | None) -> None:
        """Checks of how many samples states are; None is any number.

        Raises:
            DataError: Of another number.
        """
        got = self._io.sizes(values).get(self._io.batch, samples) if isinstance(self._io.batch, str) else samples
        if got != samples and samples is not None:
            raise DataError(
                f"restore: got states of {got} samples, a stream runs {samples} at a time.",
                hint="restore what snapshot() of a stream gave",
            )

    def _add_zeros(self, values: dict[str, np.ndarray], feed: Feed) -> None:
        lacking = [spec for spec in self.specs if spec.name not in values]
        if not lacking:
            return
        check_feed(self._io, feed)
        sizes = self._io.sizes(values)
        if isinstance(self._io.batch, str):
            sizes.setdefault(self._io.batch, 1)
        for spec in lacking:
            shape = [d if isinstance(d, int) else sizes.get(d, 0) for d in spec.shape]
            values[spec.name] = np.zeros(shape, np.dtype(spec.dtype))

    def _check_kept(self, feed: Feed) -> None:
        sizes = self._io.sizes(feed)
        for spec in self.specs:
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


def snapshot(store: StateStore | None) -> dict[str, np.ndarray]:
    """Returns a copy of the kept states, on the host; empty before the first call, and of a model without any."""
    return {name: np.array(value, order="C") for name, value in store.kept.items()} if store is not None else {}


def restore(store: StateStore | None, states: Feed, samples: int | None = None) -> None:
    """Keeps a copy of `states`, which `snapshot` gave; nothing where they are empty.

    Args:
        store: Of the session; None of a model without states.
        states: By input.
        samples: Of how many samples the states must be, where the batch is dynamic; None is any number.

    Raises:
        DataError: A state is missing, unknown, not of the dtype and shape that the model takes, or has NaN in it.
    """
    specs = store.specs if store is not None else ()
    known, hint = [spec.name for spec in specs], "restore what snapshot() gave, of a session on the same model"
    if not isinstance(states, Mapping):
        raise DataError(f"restore: got a {type(states).__name__}, expected arrays by state.", hint=hint)
    values = dict(states)
    for name in values:
        if name not in known:
            raise DataError(
                f"restore: there is no state '{name}' (states: {', '.join(known) or 'none'}).",
                hint=did_you_mean(str(name), known, hint),
            )
    if values:
        check_feed(IOSpec(specs, (), {}, batch=None), values)
    for name, value in values.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise DataError(f"restore: the state '{name}' has NaN in it.", hint="every later call would give NaN")
    if store is not None:
        store.check_samples(values, samples)
        store.kept = {name: np.array(value, order="C") for name, value in values.items()}
