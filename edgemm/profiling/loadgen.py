"""Runs a model under MLPerf's LoadGen, the load generator of MLPerf Inference, and reads what it measured.

LoadGen decides when samples come, times them, and judges the run by its own rules (MLPerf Inference rules;
LoadGen, "Scenarios"). Here it runs with settings that fit a short measurement: the numbers are LoadGen's, and no
submission.
"""

from __future__ import annotations

import json
import queue
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm._optional import require
from edgemm.errors import DataError

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.tensors import Feed

SCENARIOS = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
"""Name of a scenario -> LoadGen's."""

LABEL = (
    "measured by MLPerf LoadGen with settings for a short run; not an MLPerf submission, "
    "result not verified by MLCommons Association"
)

SECONDS = 10.0
"""How long a scenario runs at least; a submission runs for 600 seconds."""

STREAMS = 8
"""Samples of one query of multi-stream (MLPerf Inference rules, "Scenarios")."""

_MOST = 50
"""Feeds, at most, from which the speed is told before a run."""

_DETAIL, _PREFIX = "mlperf_log_detail.txt", ":::MLLOG "
_PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")


@dataclass(frozen=True, slots=True)
class Load:
    """What LoadGen is asked for.

    Attributes:
        scenario: Key of `SCENARIOS`.
        seconds: Least duration.
        queries: Least number of queries.
        batch: Most samples of one query that run in one call; a single stream has one.
        qps: Queries per second of the server; None is half of what back-to-back calls reach over the feeds.
        latency_ms: Bound on the 99th percentile of the server's latency.
        logs: Folder for LoadGen's own logs; None throws them away.
    """

    scenario: str
    seconds: float = SECONDS
    queries: int = 100
    batch: int = 1
    qps: float | None = None
    latency_ms: float = 100.0
    logs: Path | None = None


def run_scenario(session: FusionSession, feeds: Sequence[Feed], load: Load) -> dict[str, Any]:
    """Returns the report's `scenario`: what LoadGen measured, and whether it finds the run valid.

    Args:
        session: Nothing cached. Calls follow one another.
        feeds: One sample each; LoadGen draws from them.
        load: What to run.

    Raises:
        DataError: A folder for logs that has some already, or a batch that the model or scenario does not take.
        MissingExtraError: mlcommons-loadgen is not installed.
        EdgemmError: A call failed.
    """
    lg = require("mlperf_loadgen", extra="loadgen", why="run an MLPerf scenario")
    _check(session, load)
    single, fastest = _expected(session, feeds, load)
    with ExitStack() as stack:
        folder = load.logs
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemm-loadgen-")))
        folder.mkdir(parents=True, exist_ok=True)
        settings = _settings(lg, load, single, fastest)
        _start(lg, _System(lg, session, feeds, load), len(feeds), settings, folder)
        told = read_detail(folder / _DETAIL)
    return _report(load, told, settings)


def _check(session: FusionSession, load: Load) -> None:
    if load.scenario not in SCENARIOS:
        raise DataError(
            f"no scenario '{load.scenario}' (scenarios: {', '.join(SCENARIOS)}).", hint="use one of these"
        )
    if load.batch > 1 and (load.scenario == "single-stream" or not isinstance(session.io.batch, str)):
        why = "one sample at a time" if load.scenario == "single-stream" else "no open batch"
        raise DataError(
            f"--batch {load.batch}: got more than one sample per call, expected 1: {load.scenario} with this "
            f"model has {why}.",
            hint="leave --batch out",
        )
    if load.logs is not None and (load.logs / _DETAIL).exists():
        raise DataError(
            f"{load.logs} has the logs of another run; expected an empty or a new folder.",
            hint="name another folder",
        )


def _expected(session: FusionSession, feeds: Sequence[Feed], load: Load) -> tuple[float, float]:
    """Returns the mean seconds of one sample alone, and per sample of a full batch, from calls over the feeds.

    LoadGen draws from all feeds, which may differ in size: the mean is over all, or over `_MOST` drawn at random.
    """
    drawn = [feeds[i] for i in np.random.default_rng(0).permutation(len(feeds))[:_MOST]]
    singles = [[feed] for feed in drawn]
    full = [[drawn[(at + i) % len(drawn)] for i in range(load.batch)] for at in range(0, len(drawn), load.batch)]
    return _mean_seconds(session, singles), _mean_seconds(session, full) / load.batch


def _mean_seconds(session: FusionSession, groups: Sequence[Sequence[Feed]]) -> float:
    """Returns the mean seconds of a call over all groups, in ten calls or more, after one of each."""
    calls: list[Callable[[], object]] = [partial(_run_joined, session, group) for group in groups]
    for call in calls:
        call()
    return statistics.fmean(_timed(call) for _ in range(-(-10 // len(calls))) for call in calls)


def _run_joined(session: FusionSession, group: Sequence[Feed]) -> None:
    session.run(joined(session, group))


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def joined(session: FusionSession, feeds: Sequence[Feed]) -> Feed:
    """Returns several feeds of one sample each as one of a batch; inputs without a batch axis are the first's.

    Raises:
        DataError: Two samples differ in shape.
    """
    if len(feeds) == 1:
        return feeds[0]
    batch = session.io.batch
    result = dict(feeds[0])
    for spec in session.io.feed_inputs:
        if spec.shape[:1] != (batch,):
            continue
        arrays = [feed[spec.name] for feed in feeds]
        if len({a.shape[1:] for a in arrays}) > 1:
            shapes = " and ".join(dict.fromkeys(str(list(a.shape)) for a in arrays))
            raise DataError(
                f"input '{spec.name}': got samples of shapes {shapes}, expected one shape in a batch.",
                hint="leave --batch out",
            )
        result[spec.name] = np.concatenate(arrays)
    return result


def _settings(lg: Any, load: Load, single: float, fastest: float) -> Any:
    """Returns LoadGen's settings: enough samples are drawn beforehand for the duration at the expected speed."""
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, SCENARIOS[load.scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(load.seconds * 1e3)
    settings.min_query_count = load.queries
    settings.single_stream_expected_latency_ns = max(round(single * 0.8e9), 1)
    settings.multi_stream_samples_per_query = STREAMS
    settings.multi_stream_expected_latency_ns = max(round(fastest * STREAMS * 0.8e9), 1)
    settings.offline_expected_qps = 1.2 / fastest
    settings.server_target_qps = load.qps if load.qps is not None else 0.5 / fastest
    settings.server_target_latency_ns = round(load.latency_ms * 1e6)
    return settings


class _System:
    """LoadGen's system under test: runs the samples of a query, and tells when each is done.

    Nothing may be raised into LoadGen: the first failure is kept, and the other samples are answered at once.
    """

    def __init__(self, lg: Any, session: FusionSession, feeds: Sequence[Feed], load: Load) -> None:
        self.error: BaseException | None = None
        self._lg, self._session, self._feeds, self._batch = lg, session, feeds, load.batch
        self.waiting: queue.SimpleQueue[Any] | None = queue.SimpleQueue() if load.scenario == "server" else None

    def issue(self, samples: Sequence[Any]) -> None:
        """Runs a query; a server's goes to the worker, so that the next one can come meanwhile."""
        if self.waiting is None:
            self._run(samples)
        else:
            for sample in samples:
                self.waiting.put(sample)

    def work(self) -> None:
        """Runs what waits until there is a None; samples that have piled up share a call."""
        assert self.waiting is not None
        while (sample := self.waiting.get()) is not None:
            group = [sample]
            while len(group) < self._batch and not self.waiting.empty():
                more = self.waiting.get()
                if more is None:
                    self._run(group)
                    return
                group.append(more)
            self._run(group)

    def end(self) -> None:
        """Lets `work` return."""
        if self.waiting is not None:
            self.waiting.put(None)

    def _run(self, samples: Sequence[Any]) -> None:
        for start in range(0, len(samples), self._batch):
            group = samples[start : start + self._batch]
            if self.error is None:
                try:
                    feeds = [self._feeds[sample.index % len(self._feeds)] for sample in group]
                    self._session.run(joined(self._session, feeds))
                except BaseException as error:
                    self.error = error
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(sample.id, 0, 0) for sample in group])


def _start(lg: Any, system: _System, samples: int, settings: Any, folder: Path) -> None:
    """Runs the test; LoadGen writes its logs into `folder`."""
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = lg.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    worker = threading.Thread(target=system.work, name="edgemm-loadgen", daemon=True)
    if system.waiting is not None:
        worker.start()
    sut = lg.ConstructSUT(system.issue, _nothing)
    library = lg.ConstructQSL(samples, samples, _nothing, _nothing)
    try:
        lg.StartTestWithLogSettings(sut, library, settings, logs, "")
    finally:
        system.end()
        if worker.is_alive():
            worker.join()
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    if system.error is not None:
        raise system.error


def _nothing(*_: object) -> None:
    """Samples are in memory before the test, and no query is put off."""


@dataclass(frozen=True, slots=True)
class Detail:
    """LoadGen's detailed log.

    Attributes:
        values: Key -> value of what it said last.
        errors: What it called an error.
    """

    values: Mapping[str, Any]
    errors: tuple[str, ...] = field(default=())


def read_detail(file: Path) -> Detail:
    """Returns what LoadGen wrote into its detailed log: one JSON object per line, behind `:::MLLOG`.

    Raises:
        DataError: It is not there, or has no result.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"LoadGen wrote no log: {error}.", hint="is there room in the folder?") from error
    values: dict[str, Any] = {}
    errors = []
    for line in lines:
        if not line.startswith(_PREFIX):
            continue
        try:
            entry = json.loads(line.removeprefix(_PREFIX))
        except ValueError:
            continue
        values[entry["key"]] = entry["value"]
        if entry.get("metadata", {}).get("is_error"):
            errors.append(f"{entry['key']}: {entry['value']}")
    if "result_validity" not in values:
        told = "; ".join(errors) or "the test did not end"
        raise DataError(f"{file}: LoadGen gives no result: {told}.", hint="give it more --seconds")
    return Detail(values, tuple(errors))


def _reason(values: Mapping[str, Any]) -> str | None:
    """Returns why a run is not valid: LoadGen's reason, else what early stopping asks for."""
    told = str(values.get("result_invalid_reason", "")).strip()
    if not told and values["result_validity"] != "VALID":
        told = " ".join(str(values.get("early_stopping_result", "")).replace("*", " ").split())
    return told or None


def _report(load: Load, detail: Detail, settings: Any) -> dict[str, Any]:
    values = detail.values
    kind = "_per_query_latency_ns" if load.scenario == "multi-stream" else "_latency_ns"
    whole = "query_latency_ns" if load.scenario == "multi-stream" else "latency_ns"
    latency = {f"{name}_ms": _ms(values.get(f"result_{name}_{whole}")) for name in ("min", "mean", "max")}
    latency |= {
        f"p{float(p):g}_ms".replace(".", "_"): _ms(values.get(f"result_{p}_percentile{kind}"))
        for p in _PERCENTILES
    }
    result = {
        "scenario": load.scenario,
        "tool": f"MLPerf LoadGen {_version()}",
        "label": LABEL,
        "valid": values["result_validity"] == "VALID",
        "reason": _reason(values),
        "queries": values.get("result_query_count"),
        "samples_per_query": STREAMS if load.scenario == "multi-stream" else 1,
        "batch": load.batch,
        "min_duration_s": load.seconds,
        "min_queries": load.queries,
        "min_duration_met": values.get("result_min_duration_met"),
        "min_queries_met": values.get("result_min_queries_met"),
        "early_stopping_met": values.get("early_stopping_met"),
        "early_stopping": str(values.get("early_stopping_result", "")).strip() or None,
        "latency": latency,
        "errors": list(detail.errors),
        "logs": None if load.logs is None else str(load.logs),
        **_headline(load, values, latency, settings),
    }
    if load.scenario == "offline":
        result["samples_per_query"] = None  # all of them are one query
    return result


def _headline(load: Load, values: Mapping[str, Any], latency: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """Returns what MLPerf reports for a scenario, and the queries or samples per second."""
    if load.scenario == "single-stream":
        rate = values.get("result_qps_without_loadgen_overhead")
        early = _ms(values.get("early_stopping_latency_ss"))
        return {"metric": "90th percentile latency", "result_ms": early or latency["p90_ms"], "qps": rate}
    if load.scenario == "multi-stream":
        mean = latency["mean_ms"]
        early = _ms(values.get("early_stopping_latency_ms"))
        rate = STREAMS / mean * 1e3 if mean else None
        return {
            "metric": "99th percentile latency of a query",
            "result_ms": early or latency["p99_ms"],
            "qps": rate,
        }
    if load.scenario == "offline":
        return {"metric": "samples per second", "qps": values.get("result_samples_per_second")}
    return {
        "metric": "queries per second within the latency bound",
        "qps": values.get("result_completed_samples_per_sec"),
        "target_qps": settings.server_target_qps,
        "latency_bound_ms": load.latency_ms,
        "latency_bound_met": values.get("result_perf_constraints_met"),
    }


def _ms(nanoseconds: Any) -> float | None:
    return None if nanoseconds is None else float(nanoseconds) / 1e6


def _version() -> str:
    try:
        return metadata.version("mlcommons-loadgen")
    except metadata.PackageNotFoundError:
        return "of unknown version"
