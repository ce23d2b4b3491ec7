"""Keeps what engines gave, and gives it again while nothing that it was computed from has changed.

Every array that goes into an engine has a version: an input gets a new one when it has changed, an engine's
outputs when it runs. An engine whose inputs have the versions of its last run would give the same bits, so it does
not run. That holds for any chain of engines, and no result is ever approximate.

What has changed is either said (`changed={"image"}`) or seen: a copy of each input is kept and compared with what
comes, byte by byte. That is exact, where a digest could collide; it is several times faster than any digest that
rarely does; and it ends at the first difference. The identity of an array says nothing, since apps refill one
buffer. States are new in every call, so engines behind one always run.

A bundle may have one engine for the whole graph beside those of the stages. It runs the calls in which no stage
could be reused whatever had been kept, and leaves nothing to reuse. Its results are its own, bit for bit; those of
calls that the stages run are theirs, bit for bit, reused or not.

One call reads one snapshot and publishes another, so calls of several threads need no lock among themselves.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from edgemm.errors import DataError, did_you_mean
from edgemm.runtime.cache_gauge import Gauge, comparing_cost, same_bytes
from edgemm.runtime.chain import Step
from edgemm.runtime.heads import OpenHead
from edgemm.runtime.schedule import Chain
from edgemm.runtime.stand_ins import Behind
from edgemm.runtime.state import StateStore
from edgemm.tensors import IOSpec

CacheMode = Literal["auto", "content", "marks", "off"]
"""How a session knows what is unchanged: `"content"` compares, `"marks"` believes `changed` alone, `"auto"`
compares where that takes less time than the engines that it may save, `"off"` runs everything."""

CACHE_BYTES = 256 << 20
"""Most bytes that a cache holds by default."""

OFF = "nothing is kept: the session was opened with cache='off'"
ONE_ENGINE = "the whole model is one engine, of which nothing can be kept: convert with --layout staged"
NOT_WORTH = "comparing the inputs takes longer than the encoders"


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds and what it has done since the session was opened.

    Attributes:
        mode: As asked for.
        note: Why nothing is kept or compared, else empty.
        compared: Inputs whose content is compared; in mode `"auto"` all until it is decided.
        ran: Engine -> times that it ran in calls that could have reused it.
        reused: Engine -> times that its outputs were reused.
        bytes: Held now: outputs of engines and copies of inputs.
        max_bytes: The most that is held. What does not fit is not kept, and its engine runs every time.
        not_kept: Times that something did not fit.
        whole: Calls in which everything was new and one engine ran the whole graph; in no other count.
    """

    mode: CacheMode
    note: str
    compared: tuple[str, ...]
    ran: Mapping[str, int]
    reused: Mapping[str, int]
    bytes: int
    max_bytes: int
    not_kept: int
    whole: int = 0


class _Input(NamedTuple):
    """An input as it was in the last call. Without a copy it can only be called unchanged, not be seen to be."""

    version: int
    shape: tuple[int, ...]
    copy: np.ndarray | None


class _Outputs(NamedTuple):
    """What an engine gave for inputs of these versions."""

    inputs: tuple[int, ...]
    version: int
    arrays: tuple[Any, ...]
    nbytes: int


class _Snapshot(NamedTuple):
    inputs: Mapping[str, _Input]
    engines: tuple[_Outputs | None, ...]
    nbytes: int


def off_info(*, one_engine: bool) -> CacheInfo:
    """Returns what a session tells that keeps nothing; `one_engine`: of one that could keep nothing."""
    return CacheInfo("off", ONE_ENGINE if one_engine else OFF, (), {}, {}, 0, 0, 0)


class StageCache:
    """The outputs of a session's engines. A session has one, and so has each of its streams.

    Attributes:
        names: The engines, in their order.
        reused: Engines whose outputs the last call reused.
        states: Where calls through this cache keep states; None of a model without states.
        lock: Held during calls with marks or states: these follow one another.
    """

    def __init__(self, io: IOSpec, chain: Chain, mode: CacheMode, max_bytes: int = CACHE_BYTES) -> None:
        """Keeps outputs of the engines of `chain`, at most `max_bytes`. Its states and its lock are its own.

        Raises:
            DataError: No such mode, or a negative size.
        """
        check_mode(mode, max_bytes)
        self.mode = mode
        self.max_bytes = max_bytes
        self.note = ""
        self.reused: tuple[str, ...] = ()
        self.states = StateStore(io) if io.states else None
        self.lock = threading.Lock()
        self._chain = chain
        self._steps = chain.steps
        self.names = tuple(step.name for step in chain.steps)
        self._inputs = tuple((i.name, io.modalities.get(i.name)) for i in io.inputs)
        self._state_of = {s.output: s.input for s in io.states}
        self._sources = sources = _sources(io, self._steps)
        self._keepable = tuple(not (found & io.state_inputs) for found in sources)
        results = {o.name for o in io.result_outputs}
        kept = zip(self._steps, self._keepable, strict=True)
        self._copied = tuple(n for step, keepable in kept if keepable for n in step.outputs if n in results)
        self._compared = frozenset(io.modalities) if mode in ("auto", "content") else frozenset()
        self._gauge = Gauge(self._steps, sources, self._keepable) if mode == "auto" else None
        self._empty = _Snapshot({}, (None,) * len(self._steps), 0)
        self._snapshot = self._empty
        self._versions = itertools.count()
        self._counting = threading.Lock()
        self._calls = self._wholes = 0
        self._reused = [0] * len(self._steps)
        self._not_kept = 0

    @property
    def active(self) -> bool:
        """Whether a call without marks can reuse anything, or leaves something that a call with marks can."""
        return bool(self._compared) or self.mode == "marks"

    def forget(self) -> None:
        """Drops everything: the next call runs every engine."""
        if self._snapshot is not self._empty:
            self._snapshot = self._empty

    def follow(self, fresh: StageCache, states: Mapping[str, np.ndarray]) -> None:
        """Goes on as `fresh`, with `states` kept: the session has the engines of another bundle.

        Args:
            fresh: A cache over these engines that nobody uses.
            states: State input -> value; none begin at zeros.
        """
        if fresh.states is not None:
            fresh.states.kept = dict(states)
        with self.lock, self._counting:
            stays = ("lock", "_counting")
            vars(self).update({name: value for name, value in vars(fresh).items() if name not in stays})

    def chain(self, values: dict[str, Any], changed: Collection[str] | None, behind: Behind | None = None) -> None:
        """Adds to `values` what the engines give, as running all of them would, and drops what is not needed.

        Args:
            values: Every input, states included. Results in it may be written to afterwards: they are copies.
            changed: Modalities that are not what they were in the call before; None compares.
            behind: Engines that do not run, and their outputs instead.
        """
        old, gauge = self._snapshot, self._gauge
        if gauge is not None:
            gauge.begin()
        versions, inputs, size = self._seen(old, values, changed)
        whole = self._chain.whole
        if whole is not None and gauge is None and not behind and self._all_new(old, inputs):
            self._chain.run_whole(whole, values)
            self._publish_whole(_Snapshot(inputs, self._empty.engines, size), whole)
            return
        engines: list[_Outputs | None] = [None] * len(self._steps)
        reused: list[int] = []
        not_kept = 0
        steps, lanes = (
            self._steps,
            self._chain.lanes if gauge is None else None,
        )  # measured, engines run by themselves
        for level in self._chain.levels:
            made: list[tuple[int, _Outputs]] = []
            beside: list[tuple[int, tuple[int, ...]]] = []
            for at in level.steps:
                key = tuple([versions[name] for name in steps[at].inputs])
                outputs = old.engines[at]
                if outputs is not None and outputs.inputs == key:
                    reused.append(at)
                elif lanes is None:
                    outputs = self._give(at, key, values, behind)
                else:
                    beside.append((at, key))
                    continue
                made.append((at, outputs))
            if lanes is not None and beside:
                given = lanes.run([partial(self._give, at, key, values, behind) for at, key in beside])
                made += zip([at for at, _ in beside], given, strict=True)
            for at, outputs in made:
                values.update(zip(steps[at].outputs, outputs.arrays, strict=True))
                for name in steps[at].outputs:
                    versions[name] = outputs.version
                if self._keepable[at] and size + outputs.nbytes <= self.max_bytes:
                    engines[at] = outputs
                    size += outputs.nbytes
                else:
                    not_kept += self._keepable[at]
            for name in level.done if not behind else ():  # a head may read them later
                del values[name]
        for name in self._copied:
            if isinstance(values[name], np.ndarray):
                values[name] = values[name].copy()
        self._publish(_Snapshot(inputs, tuple(engines), size), reused, not_kept)
        if gauge is not None and gauge.end():
            self._decide(gauge, inputs)

    def _all_new(self, old: _Snapshot, inputs: Mapping[str, _Input]) -> bool:
        """Returns whether no engine could be reused even if the outputs of all were kept."""
        new = {
            name for name, modality in self._inputs if modality is None or inputs[name] is not old.inputs.get(name)
        }
        return all(found & new for found in self._sources if found)

    def _give(self, at: int, key: tuple[int, ...], values: Mapping[str, Any], behind: Behind | None) -> _Outputs:
        """Returns what an engine gives for inputs of these versions; it may be called from several threads."""
        step, gauge = self._steps[at], self._gauge
        if behind and step.name in behind:  # its states stay as they are
            instead = behind[step.name]
            if isinstance(instead, OpenHead):
                arrays = instead(values, step.outputs)
            else:
                arrays = tuple([instead[n] if n in instead else values[self._state_of[n]] for n in step.outputs])
        elif gauge is None:
            arrays = tuple(step.run(step.given(values)))
        else:
            arrays = tuple(gauge.run(at, step.given(values)))
        return _Outputs(key, next(self._versions), arrays, sum([a.nbytes for a in arrays]))

    def info(self) -> CacheInfo:
        """Returns what is held and what was done."""
        with self._counting:
            names, calls = self.names, self._calls - self._wholes
            return CacheInfo(
                self.mode,
                self.note,
                tuple(name for name, _ in self._inputs if name in self._compared),
                {name: calls - reused for name, reused in zip(names, self._reused, strict=True)},
                dict(zip(names, self._reused, strict=True)),
                self._snapshot.nbytes,
                self.max_bytes,
                self._not_kept,
                self._wholes,
            )

    def _seen(
        self, old: _Snapshot, values: Mapping[str, Any], changed: Collection[str] | None
    ) -> tuple[dict[str, int], dict[str, _Input], int]:
        """Returns the version of every input, what to keep of them, and the bytes of that."""
        versions: dict[str, int] = {}
        inputs: dict[str, _Input] = {}
        size = 0
        for name, modality in self._inputs:
            if modality is None:  # a state
                versions[name] = next(self._versions)
                continue
            array, last = values[name], old.inputs.get(name)
            if last is None or not self._unchanged(last, array, modality, changed):
                copy = None
                if changed is None and name in self._compared and isinstance(array, np.ndarray):
                    copy = array.copy() if size + array.nbytes <= self.max_bytes else None
                last = _Input(next(self._versions), array.shape, copy)
            versions[name] = last.version
            inputs[name] = last
            if last.copy is not None:
                size += last.copy.nbytes
        return versions, inputs, size

    def _unchanged(self, last: _Input, array: Any, modality: str, changed: Collection[str] | None) -> bool:
        if last.shape != array.shape:
            return False
        if changed is not None:
            return modality not in changed
        return last.copy is not None and isinstance(array, np.ndarray) and same_bytes(last.copy, array)

    def _publish(self, snapshot: _Snapshot, reused: Sequence[int], not_kept: int) -> None:
        self._snapshot = snapshot
        self.reused = tuple([self._steps[at].name for at in reused])
        with self._counting:
            self._calls += 1
            for at in reused:
                self._reused[at] += 1
            self._not_kept += not_kept

    def _publish_whole(self, snapshot: _Snapshot, whole: Step) -> None:
        self._snapshot = snapshot
        self.ran, self.reused = (whole.name,), ()
        with self._counting:
            self._calls += 1
            self._wholes += 1

    def _decide(self, gauge: Gauge, inputs: Mapping[str, _Input]) -> None:
        """Settles which inputs `"auto"` compares."""
        self._gauge = None
        self._compared = gauge.worth({name: comparing_cost(i.copy) for name, i in inputs.items()})
        self.note = "" if self._compared else NOT_WORTH
        self.forget()  # copies of what is no longer compared


def check_mode(mode: str, max_bytes: int) -> None:
    """Checks what a caller asks of a cache.

    Raises:
        DataError: No such mode, or a negative size.
    """
    modes = get_args(CacheMode)
    if mode not in modes:
        raise DataError(
            f"cache: got {mode!r}, expected one of {', '.join(modes)}.",
            hint=did_you_mean(str(mode), modes, "auto compares inputs where that is faster than their encoder"),
        )
    if max_bytes < 0:
        raise DataError(f"cache_bytes: got {max_bytes}, expected 0 or more.", hint="cache='off' keeps nothing")


def check_marks(io: IOSpec, changed: Collection[str]) -> None:
    """Checks that `changed` names modalities of the model.

    Raises:
        DataError: It does not.
    """
    if isinstance(changed, str) or not isinstance(changed, Collection):
        raise DataError(
            f"changed: got {changed!r:.60}, expected a set of modalities.",
            hint=f"write changed={{{changed!r:.60}}}"
            if isinstance(changed, str)
            else "changed={'image'}, for example",
        )
    known = io.modalities.values()
    for name in changed:
        if name not in known:
            raise io.no_modality("changed", name)


def _sources(io: IOSpec, steps: Sequence[Step]) -> tuple[frozenset[str], ...]:
    """Returns for each engine the model inputs, states included, that reach it."""
    behind: dict[str, frozenset[str]] = {i.name: frozenset([i.name]) for i in io.inputs}
    found = []
    for step in steps:
        sources = frozenset[str]().union(*(behind[name] for name in step.inputs))
        behind.update(dict.fromkeys(step.outputs, sources))
        found.append(sources)
    return tuple(found)
