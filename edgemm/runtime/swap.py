"""Another bundle takes the place of a session's, between two of its calls.

The new bundle is opened as a session of its own, beside the old one. When it has shown what it can, both sessions
exchange everything that belongs to their engines, and the one with the old engines is closed. No call is under way
then: those that were have ended, and those that came meanwhile wait, about as long as a call takes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.errors import BackendError, BundleError, DataError, EdgemmError, did_you_mean
from edgemm.runtime.synthetic import checked_sizes, random_feed
from edgemm.tensors import Dim, Feed, IOSpec, TensorSpec

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession

PATIENCE = 30.0
"""Most seconds that the calls under way may take to end; those that come meanwhile wait as long."""

RUNS = 2
"""Times that each feed runs before the switch: the second run reads the states that the first one left."""

MAX_SHAPES = 4
"""Most combinations of shapes, of those that the session has seen, that the new engines are run on."""

_STAYS = frozenset({"_gate", "_streams", "latency", "stage_latency"})
"""Attributes of a session that a swap leaves as they are. All others come with the engines."""

_SAME = "convert the new model with the same inputs and outputs, or open it in a session of its own"
_STATES = "convert the new model with the same states: --state IN=OUT"

_log = logging.getLogger("edgemm")


def swap(
    session: FusionSession,
    path: str | os.PathLike[str],
    feed: Feed | None,
    *,
    keep_state: bool,
    opening: Mapping[str, Any],
) -> None:
    """Lets `session` go on with the bundle at `path`; see `FusionSession.swap`.

    Raises:
        EdgemmError: The session is what it was.
    """
    from edgemm.runtime.opening import open_session

    if "max_in_flight" in opening:
        raise DataError("swap: max_in_flight is the session's, not a bundle's.", hint="call limit_calls()")
    with session._gate.entered(in_turn=False):  # a session that is closed opens nothing
        reopen = session.reopen or open_session
        kept: dict[str, Any] = {"cache": session._cache_mode}
        if session._cache_mode != "off":
            kept["cache_bytes"] = session._cache_bytes
    other = reopen(path, **{**kept, **opening})
    try:
        check_signature(path, session.io, other.io)
        warm_up(path, other, [feed] if feed is not None else _random_feeds(session, other))
        with session._gate.alone(PATIENCE):
            before = session.manifest.name
            _switch(path, session, other, keep_state=keep_state)
    finally:
        other.close()  # with the old engines, or with the new ones if they are not wanted
    _log.info("%s: runs '%s' in the place of '%s'", path, session.manifest.name, before)


def check_signature(path: str | os.PathLike[str], old: IOSpec, new: IOSpec) -> None:
    """Checks that a feed, a result and a state of one model is one of the other.

    The order of tensors may differ, and so may the names of symbolic dimensions.

    Raises:
        BundleError: It is not; the message names the tensor.
    """
    _check_tensors(path, old, new)
    _check_states(path, old, new)
    for name, modality in old.modalities.items():
        if new.modalities[name] != modality:
            found = new.modalities[name]
            raise _other(path, f"its input '{name}' is of '{found}', that of the session of '{modality}'", _SAME)


def _check_tensors(path: str | os.PathLike[str], old: IOSpec, new: IOSpec) -> None:
    tensors = {"input": (old.inputs, new.inputs), "output": (old.outputs, new.outputs)}
    for kind, specs in tensors.items():
        mine, theirs = ({t.name: t for t in of} for of in specs)
        for name in sorted(mine.keys() - theirs.keys()):
            raise _other(path, f"it has no {kind} '{name}'", did_you_mean(name, theirs, _SAME))
        for name in sorted(theirs.keys() - mine.keys()):
            raise _other(path, f"its {kind} '{name}' is none of the session", _SAME)
    dims = _renamed(new, {t.name: t for t in (*old.inputs, *old.outputs)})
    for kind, (was, now) in tensors.items():
        found = {t.name: t for t in now}
        for spec in was:
            other = found[spec.name]
            if (spec.dtype, spec.shape) != (other.dtype, tuple(dims.get(d, d) for d in other.shape)):
                raise _other(path, f"its {kind} is {other}, that of the session {spec}", _SAME)
    batch = new.batch if new.batch is None else dims.get(new.batch, new.batch)
    if old.batch != batch:
        raise _other(path, f"its batch is {new.batch}, that of the session {old.batch}", _SAME)


def _check_states(path: str | os.PathLike[str], old: IOSpec, new: IOSpec) -> None:
    mine, theirs = ({s.input: s.output for s in io.states} for io in (old, new))
    for name in (*mine, *theirs):
        if mine.get(name) != theirs.get(name):
            now, was = (f"from '{of[name]}'" if name in of else "no state" for of in (theirs, mine))
            raise _other(path, f"'{name}' is {now}, in the session {was}", _STATES)


def warm_up(path: str | os.PathLike[str], session: FusionSession, feeds: Sequence[Feed]) -> None:
    """Runs a session that nobody else uses on `feeds`, and leaves no state and nothing to reuse.

    Raises:
        EdgemmError: A run failed, or a result is not finite.
    """
    for feed in feeds:
        for _ in range(RUNS):
            for name, value in session.run(feed).items():
                if value.dtype.kind in "fc" and not np.isfinite(value).all():
                    raise BackendError(
                        f"{path}: in its warm-up run the output '{name}' has values that are not finite.",
                        hint="if random inputs are to blame, give real ones: swap(path, feed)",
                    )
        session.reset_state()
    session.use_cache(session._cache_mode, session._cache_bytes)


def _random_feeds(session: FusionSession, other: FusionSession) -> list[Feed]:
    """Returns feeds for `other` in shapes that `session` was called with, else of one sample."""
    io = other.io
    feeds: list[Feed] = []
    check = session._feeds if session.raw is None else session.raw.check
    for shapes in tuple(check.accepted)[-MAX_SHAPES:]:
        seen = dict(zip(check.names, shapes, strict=True))
        if any(0 in seen[spec.name] for spec in io.feed_inputs):
            continue  # what is empty shows nothing
        pairs = [(spec, seen[spec.name]) for spec in io.feed_inputs]
        sizes = {
            d: n for spec, shape in pairs for d, n in zip(spec.shape, shape, strict=True) if isinstance(d, str)
        }
        batches = [shape[0] for spec, shape in pairs if spec.shape[:1] == (io.batch,)]
        feeds.append(random_feed(io, sizes, batch=batches[0] if batches else 1))
    if feeds:
        return feeds
    sizes = checked_sizes(other.manifest.info.get("dynamic", {}))
    return [random_feed(io, sizes, batch=io.batch if isinstance(io.batch, int) else 1)]


def _switch(
    path: str | os.PathLike[str], session: FusionSession, other: FusionSession, *, keep_state: bool
) -> None:
    """Exchanges the engines of two sessions and lets the streams of the first follow. No call is under way."""
    streams = [stream for stream in session._streams if not stream._closed]
    for stream in streams:
        try:
            stream.policy.check(other.io, other.stand_ins)
        except EdgemmError as error:
            raise BundleError(
                f"{path}: it does not fit a stream of the session ({error}); nothing was changed.", hint=error.hint
            ) from error
    state = session.snapshot() if keep_state else {}
    states = [stream.snapshot() if keep_state else {} for stream in streams]
    mine, theirs = ({n: v for n, v in vars(s).items() if n not in _STAYS} for s in (session, other))
    vars(session).update(theirs)
    vars(other).update(mine)
    session._gate.name = session.manifest.name
    session.latency.reset()  # those times are of the old engines
    session.stage_latency.clear()
    session.restore(state)
    for stream, kept in zip(streams, states, strict=True):
        stream.follow(kept)


def _renamed(new: IOSpec, old: Mapping[str, TensorSpec]) -> dict[Dim, Dim]:
    """Returns symbolic dimension of `new` -> what it is called in `old`, where each has one name in the other."""
    names: dict[Dim, Dim] = {}
    for spec in (*new.inputs, *new.outputs):
        for dim, was in zip(spec.shape, old[spec.name].shape, strict=False):
            if isinstance(dim, str) and isinstance(was, str):
                names.setdefault(dim, was)
    several = [was for was in names.values() if list(names.values()).count(was) > 1]
    return {dim: was for dim, was in names.items() if was not in several or dim == was}


def _other(path: str | os.PathLike[str], what: str, hint: str) -> BundleError:
    return BundleError(f"{path}: {what}; nothing was changed.", hint=hint)
