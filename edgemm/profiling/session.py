"""Measures an opened session in every mode that was asked for, and puts the report together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.profiling.breakdown import critical_path, modality_shares, timeline
from edgemm.profiling.cached import Cached, cached, check_cached
from edgemm.profiling.pacing import Paced, Schedule, make_schedule, paced
from edgemm.profiling.record import Recorder, Runs, back_to_back, cycle
from edgemm.profiling.report import KIND, SCHEMA
from edgemm.profiling.resources import ResourceWatch
from edgemm.profiling.spread import measure_spread
from edgemm.profiling.times import drift, times_json
from edgemm.profiling.warmup import WarmupRule, warm_up
from edgemm.runtime.latency import Latencies

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.tensors import Feed

SECONDS = 3.0
"""How long each mode is measured where nothing else is said."""

RESTLESS = 0.25
"""Coefficient of variation from which the report warns."""

DRIFT = 0.1
"""Relative change from the first to the last third of the runs from which the report warns."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        runs: Runs of each mode; None goes by `seconds`.
        seconds: How long each mode is measured; None with `runs`, or for 3 seconds.
        warmup: When the calls before are enough.
        reset_every: Forget the kept states before every such run; 0 never does.
        rates: Modality -> samples a second; not empty measures the paced mode as well.
        cached: Modalities that do not change; not empty measures the cached mode as well.
        reopen: Opens the model again for the cached mode, so that it may reuse; None takes the session itself.
        spread: Whether to look for a dependence on the input: for real samples.
        energy: Whether to measure the energy, where there is a meter.
    """

    runs: int | None = None
    seconds: float | None = None
    warmup: WarmupRule = field(default_factory=WarmupRule)
    reset_every: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    reopen: Callable[[], FusionSession] | None = None
    spread: bool = False
    energy: bool = True

    @property
    def length(self) -> dict[str, Any]:
        """`runs` or `seconds`, as `measure` takes them."""
        return {"runs": self.runs, "seconds": self.seconds or (None if self.runs else SECONDS)}

    def calls(self, period: float) -> int:
        """Returns the number of calls of a mode that makes one every `period` seconds."""
        return self.runs or max(1, round((self.seconds or SECONDS) / period))


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        report: Keys of `edgemm.profiling.report.Report`: those that `profile_session` knows.
        runs: Every inference, by mode: for `edgemm.profiling.files`.
    """

    report: dict[str, Any]
    runs: tuple[Runs, ...]


def profile_session(
    session: FusionSession, feeds: Sequence[Feed], plan: Plan, watch: ResourceWatch
) -> Measurement:
    """Returns the times of a session that has not run yet, and what its runs take besides.

    Args:
        session: What to measure; of a cache that is off, else the engines do not all run.
        feeds: Inputs to cycle over, one or more.
        plan: What to measure.
        watch: Made before the session was opened.

    Raises:
        DataError: The plan does not fit the model.
        BackendError: An engine failed.
    """
    io = session.io
    schedule = make_schedule(io, plan.rates) if plan.rates else None
    if plan.cached:
        reusable = len(session.variant.engines) > 1 or bool(session.variant.reuse and plan.reopen)
        check_cached(io, plan.cached, reusable=reusable)
    start = perf_counter()
    session.run(feeds[0])
    first = perf_counter() - start
    recorder = Recorder(session, plan.reset_every)
    call = cycle(recorder.call, feeds)
    steady = warm_up(call, plan.warmup)
    watch.warm()
    plain = back_to_back(recorder, call, **plan.length)
    states = {name: list(value.shape) for name, value in session.state.items()}
    inside = plain.engine_seconds()
    further = list(_further_modes(session, recorder, feeds, plan, schedule))
    report: dict[str, Any] = {
        "states": states,
        "warmup": steady["runs"],
        "steady": steady,
        "first_call_ms": first * 1e3,
        **_whole_and_parts(session, plain, inside, _samples_per_call(session, feeds[0])),
        "modes": [_plain_mode(plain), *(mode.to_json() for mode in further)],
    }
    if plan.spread and (spread := measure_spread(_fresh(session, feeds), len(feeds))):
        report["spread"] = spread
    repeated = _again(session, feeds, plan.reset_every or plain.count) if plan.energy else None
    report["resources"] = watch.to_json(repeated, report["modalities"], on_gpu=on_gpu(session))
    report["peak_memory_mb"] = watch.peak / 2**20
    report["baseline_memory_mb"] = watch.baseline / 2**20
    report["warnings"] = warnings_of(report, drift(plain.seconds), session.variant.reuse)
    return Measurement(report, (plain, *(mode.runs for mode in further)))


def _further_modes(
    session: FusionSession, recorder: Recorder, feeds: Sequence[Feed], plan: Plan, schedule: Schedule | None
) -> Iterator[Paced | Cached]:
    """Yields what was measured in each mode besides the plain one."""
    if schedule is not None:
        yield paced(recorder, session.io, feeds, schedule, plan.calls(schedule.period))
    if plan.cached:
        with plan.reopen() if plan.reopen else nullcontext(session) as again:
            yield cached(again, feeds, plan.cached, plan.warmup, **plan.length)


def _plain_mode(plain: Runs) -> dict[str, Any]:
    return {"mode": plain.mode, "label": plain.label, "times": times_json(plain.seconds)}


def session_facts(session: FusionSession) -> dict[str, Any]:
    """Returns the keys of a report that say what runs and by what."""
    choice, variant, backend = session.choice, session.variant, session.backend
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "variant": variant.name,
        "target": variant.target,
        "layout": variant.layout,
        "backend": backend,
        "backend_version": getattr(sys.modules.get(_package(backend, session)), "__version__", None),
        "choice": choice and choice.to_json(),
        "host_steps": session.raw is not None,
        "instead_of": None if backend == variant.backend else f"{variant.backend} on {variant.target}",
    }


def on_gpu(session: FusionSession) -> bool:
    """Returns whether an engine of a session runs on an NVIDIA GPU."""
    return any(name == "tensorrt" or name.startswith("ort-") for name in session.backend.split("+"))


def warnings_of(report: Mapping[str, Any], drifted: float, reuse: str = "") -> list[str]:
    """Returns what a reader of the numbers must know.

    Args:
        report: What was measured.
        drifted: Median of the last third of the runs over that of the first.
        reuse: Variant that runs calls in which something is unchanged, where that is another one.
    """
    found = []
    if reuse:
        found.append(
            f"these are calls in which everything is new; where something is unchanged, the stages of '{reuse}' "
            f"run: --cached MODALITY, or --variant {reuse} for a share per modality"
        )
    cv = report["end_to_end"]["cv"]
    if cv > RESTLESS:
        found.append(
            f"restless machine: the runs vary by {cv:.0%} of their mean; repeat with nothing else running"
        )
    if not report["steady"]["reached"] and not report["steady"]["rule"].endswith("as asked"):
        found.append(f"not steady after {report['warmup']} runs to warm up; measure for longer")
    if abs(drifted - 1) > DRIFT:
        more = "slower" if drifted > 1 else "faster"
        found.append(f"the runs became {more}: the last third takes {drifted:.2f} times what the first takes")
    throttling = report["resources"]["throttling"]
    if throttling.get("throttled"):
        found.append(f"the machine slowed itself down: {'; '.join(throttling['because'])}")
    for mode in report["modes"]:
        if mode.get("kept_up") is False:
            found.append(
                f"paced: a call takes longer than the {mode['deadline_ms']:.3g} ms between two samples of "
                f"{mode['trigger']}; its latencies grow with the number of runs"
            )
        if unrated := ", ".join(sorted(mode.get("ages", {}).keys() - mode.get("rate_hz", {}).keys())):
            found.append(f"paced: no --rate for {unrated}: a new sample with every one of {mode['trigger']}")
        if mode.get("reused") == []:
            found.append(f"{mode['label']}: no engine depends on this alone, so every engine ran")
    return found


def _whole_and_parts(
    session: FusionSession, plain: Runs, inside: Mapping[str, np.ndarray], samples: int
) -> dict[str, Any]:
    """Returns the times of whole calls, and where they went."""
    mean = float(plain.seconds.mean())
    entries = session.variant.engines
    path, length = critical_path(entries, inside)
    return {
        "runs": plain.count,
        "end_to_end": times_json(plain.seconds),
        "stages": [
            {
                "name": entry.name,
                "stages": list(entry.stages),
                "share": float(inside[entry.name].mean()) / mean,
                **times_json(inside[entry.name], histogram=False),
            }
            for entry in entries
        ],
        "sum_of_stages_p50_ms": Latencies(np.sum(list(inside.values()), axis=0)).median * 1e3,
        "overhead_p50_ms": float(np.median(plain.seconds - plain.covered())) * 1e3,
        "samples_per_second": samples / mean,
        "modalities": modality_shares(entries, session.stages, inside),
        "critical_path": path,
        "critical_path_ms": length * 1e3,
        "timeline": timeline(plain),
    }


def _package(backend: str, session: FusionSession) -> str:
    """Returns the import name of what runs a session."""
    if backend.startswith("ort-"):
        return "onnxruntime"
    modules = {str(e.options["module"]) for e in session.variant.engines if "module" in e.options}
    return modules.pop() if backend == "tensorrt" and len(modules) == 1 else backend


def _samples_per_call(session: FusionSession, feed: Feed) -> int:
    io = session.io
    for spec in io.feed_inputs:
        if io.batch is not None and spec.shape[:1] == (io.batch,):
            return int(feed[spec.name].shape[0])
    return 1


def _fresh(session: FusionSession, feeds: Sequence[Feed]) -> Callable[[int], object]:
    """Returns a call that runs one of the feeds, from states of zeros."""

    def call(at: int) -> object:
        session.reset_state()
        return session.run(feeds[at])

    return call if session.io.states else lambda at: session.run(feeds[at])


def _again(session: FusionSession, feeds: Sequence[Feed], reset_every: int) -> Callable[[], object]:
    """Returns a call that runs the next feed without a record; states grow no further than in the measurement."""
    done = 0

    def call() -> object:
        nonlocal done
        if session.io.states and done % reset_every == 0:
            session.reset_state()
        done += 1
        return session.run(feeds[done % len(feeds)])

    return call
