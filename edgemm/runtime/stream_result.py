"""What a stream gives: results, and what it has counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgemm.runtime.cache import StageCache
from edgemm.runtime.heads import HEAD, OpenHead
from edgemm.runtime.stand_ins import Behind
from edgemm.runtime.stream_policy import StreamPolicy
from edgemm.runtime.stream_sync import Counters, SampleSet

_log = logging.getLogger("edgemm")


@dataclass(frozen=True, slots=True)
class Result:
    """What one set gave.

    Attributes:
        outputs: The result outputs by name, as `FusionSession.run` returns them.
        time: Of the set: corrected capture time of the sample that triggered it, the tick, or when `infer` asked.
        ages: Modality -> seconds from the capture of its sample to `time`, negative for a later one in the window;
            None where a value went in.
        encoded: Engines that ran, the fusion head among them, or another one as `"head:NAME"`.
        cached: Engines whose outputs were those of an earlier set. Engines in neither did not run, since what the
            bundle holds for a modality without a sample stood for their outputs.
        stale: Modalities that went in with a sample older than the window or `max_age` allow.
        filled: Modalities that went in without a sample -> what stood for it: the fill, or `"array"`.
        latency: Seconds from the capture of the sample that triggered (without one: of the newest) to the outputs;
            None without any sample.
        number: Counts the results of a stream from 0.
        epoch: How often a clock was set back before; times of two epochs cannot be compared.
    """

    outputs: dict[str, np.ndarray]
    time: float
    ages: Mapping[str, float | None]
    encoded: tuple[str, ...]
    cached: tuple[str, ...]
    stale: tuple[str, ...]
    filled: Mapping[str, str]
    latency: float | None
    number: int
    epoch: int


@dataclass(frozen=True, slots=True)
class StreamCounters:
    """What a stream has done so far.

    Attributes:
        results: Sets that ran.
        incomplete: Sets that were given up because a required modality lacked.
        failed: Sets whose run raised.
        skipped: Ticks that passed without anybody asking for their set.
        callback_errors: Callbacks that raised.
        clock_jumps: How often a clock was set back.
        modalities: What became of the samples.
    """

    results: int
    incomplete: int
    failed: int
    skipped: int
    callback_errors: int
    clock_jumps: int
    modalities: Mapping[str, Counters]


def report(error: Exception, on_error: Callable[[Exception], object] | None) -> None:
    """Gives `error` to `on_error`; without one, or if that raises, to the log."""
    if on_error is not None:
        try:
            on_error(error)
            return
        except Exception as another:
            error = another
    _log.error("stream: %s", error, exc_info=error)


def what_ran(cache: StageCache, behind: Behind) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the engines that ran in the last call through `cache`, and those that were reused.

    Args:
        cache: Of the stream.
        behind: Engines that did not run, and what was there instead.
    """
    cached = tuple(name for name in cache.reused if name not in behind)
    heads = {
        f"{HEAD}:{b.entry.name}": name in cache.reused for name, b in behind.items() if isinstance(b, OpenHead)
    }
    encoded = tuple(name for name in cache.names if name not in cached and name not in behind)
    return (
        (*encoded, *(head for head, kept in heads.items() if not kept)),
        (*cached, *(head for head, kept in heads.items() if kept)),
    )


def make_result(
    found: SampleSet,
    policy: StreamPolicy,
    outputs: dict[str, np.ndarray],
    engines: tuple[tuple[str, ...], tuple[str, ...]],
    done: float,
    number: int,
) -> Result:
    """Returns the result of a set.

    Args:
        found: The set.
        policy: Says what stood for modalities without a sample.
        outputs: What the engines gave for it.
        engines: Those that ran, and those whose outputs were reused.
        done: What the clock shows now.
        number: How many results there were before.
    """
    samples = {m: s for m, s in found.samples.items() if s is not None}
    newest = found.trigger or max(samples.values(), key=lambda s: s.at, default=None)
    return Result(
        outputs,
        found.time,
        {m: found.time - samples[m].at if m in samples else None for m in found.samples},
        *engines,
        found.stale,
        {m: policy.fill_name(m) for m in found.filled},
        done - newest.captured if newest is not None else None,
        number,
        found.epoch,
    )
