"""A FusionSession against one ONNX Runtime session of the same model, interleaved.

    python -m benchmarks.runtime [NAME ...] [--threads 1,2] [--busy 0,1] [--seconds 20] [--json OUT]

Each fixture is converted to a float bundle on ONNX Runtime with both layouts, and timed beside the plain float
model in one session with default options, all in one run per number of threads and of busy processes beside it:

- `stages`, `parallel`: every engine runs, one after the other, or encoders at the same time.
- `whole`: the engine for the whole graph by itself.
- `both`: what an app calls when everything is new; the session has the stages as well.
- `MODALITY new`, `nothing new`: the others are marked as unchanged; `seen`: the session compares the inputs.

`x plain` is the median over that of the plain model with its 95 % interval. `expected` is what a call must take at
least: the engines that have to run (the fusion head's where none has), as a part of the time of all stages, beside
`x stages`, what it took of that.
`ok` compares with the limits: full runs 1.03 times the plain model, 1.0 where others are busy; with something
unchanged 5 % of a full run more than expected. Reused results are checked to be those of full runs, bit for bit.
What `run` adds to plain calls of the same engines comes from a bundle of tiny stages: at most 10 µs per stage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.driver import keep
from benchmarks.fixtures import FIXTURES, build
from benchmarks.foundation import FOLDER, convert
from benchmarks.plain import PlainFloat
from benchmarks.tiny import measure_overhead
from edgemm.bundle import Schedule
from edgemm.data import make_feed, open_samples, spread
from edgemm.runtime import FusionSession, SessionOptions, open_session
from edgemm.runtime.cache import CacheMode
from edgemm.runtime.latency import ratio
from edgemm.runtime.turns import Timed, Timing, time_sessions
from edgemm.tensors import Feed

NAMES = ("imu", "av_digits", "av_attention", "review_image", "hf_clip")
OPTIONS = ("--layout", "both", "--precision", "fp32", "--engine", "onnxruntime")
SAMPLES = 16
OVERHEAD_US = 10.0
FULL, BUSY = 1.03, 1.0
SLACK = 0.05

IN_TURN, PARALLEL = Schedule(), Schedule("parallel")
Row = dict[str, Any]


class Case:
    """Calls of one session in which the same modalities are new every time; takes its feeds from itself."""

    def __init__(self, session: FusionSession, feeds: Sequence[Feed], new: frozenset[str], *, marks: bool) -> None:
        self.session, self.new = session, new
        self._feeds, self._marks = feeds, marks
        self.feed: dict[str, np.ndarray] = dict(feeds[0])
        self._at = 0

    def run(self, feed: Feed | None = None) -> dict[str, np.ndarray]:
        """Runs once; `feed` changes nothing."""
        self._at = (self._at + 1) % len(self._feeds)
        for name, array in self._feeds[self._at].items():
            if self.session.io.modalities[name] in self.new:
                self.feed[name] = array
        return self.session.run(self.feed, self.new) if self._marks else self.session.run(self.feed)

    def run_timed(self, feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns what `run` returns, and no times of parts."""
        return self.run(), {}

    def reset_state(self) -> None:
        """Forgets kept states."""
        self.session.reset_state()

    def engines(self) -> set[str]:
        """Returns the engines that a call runs."""
        before = self.session.cache_info().ran
        self.run()
        return {name for name, count in self.session.cache_info().ran.items() if count > before[name]}


def open_cases(bundle: Path, feeds: Sequence[Feed], threads: int, stack: ExitStack) -> dict[str, Timed]:
    """Returns what is timed beside the plain model, by name."""

    def opened(
        cache: CacheMode = "off", variant: str | None = None, schedule: Schedule | None = None
    ) -> FusionSession:
        options = SessionOptions(schedule=schedule or Schedule())
        return stack.enter_context(
            open_session(bundle, threads=threads, cache=cache, variant=variant, options=options)
        )

    whole = opened()
    staged = whole.variant.reuse or whole.variant.name  # where both would be the same
    cases: dict[str, Timed] = {"stages": opened(variant=staged)}
    if threads > 1:
        cases["parallel"] = opened(variant=staged, schedule=PARALLEL)
    cases["whole"] = whole
    modalities = whole.io.modality_names()
    cases["both"] = Case(opened("marks"), feeds, frozenset(modalities), marks=True)
    for name, new in {**{m: frozenset([m]) for m in modalities}, "nothing": frozenset[str]()}.items():
        cases[f"{name} new"] = Case(opened("marks"), feeds, new, marks=True)
        cases[f"{name} new, seen"] = Case(opened("content"), feeds, new, marks=False)
    return cases


def check(cases: dict[str, Timed], feeds: Sequence[Feed]) -> None:
    """Checks that reused results are those of full runs of the stages, bit for bit."""
    full = cases["stages"]
    assert isinstance(full, FusionSession)
    for name, case in cases.items():
        if not isinstance(case, Case) or name == "both":
            continue
        case.run()
        for _ in range(2 * len(feeds)):
            got, expected = case.run(), full.run(case.feed)
            if any(got[n].tobytes() != expected[n].tobytes() for n in expected):
                raise AssertionError(f"{name}: a reused result differs from a full run")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Lets other processes compute meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(name: str, bundle: Path, threads: int, beside: int, seconds: float) -> list[Row]:
    """Returns a row per case."""
    fixture = build(name)
    samples = open_samples(str(fixture.eval))
    with ExitStack() as stack:
        whole = stack.enter_context(open_session(bundle, cache="off"))
        feeds = [make_feed(whole.io, [samples[i]]) for i in spread(len(samples), SAMPLES)]
        cases = open_cases(bundle, feeds, threads, stack)
        check(cases, feeds)
        ran = {n: c.engines() for n, c in cases.items() if isinstance(c, Case)}
        plain = PlainFloat.open(fixture, whole.io, feeds[0], threads)
        with busy(beside):
            timings = time_sessions({"plain": plain, **cases}, feeds, seconds=seconds)
        shares = {name: t.median for name, t in timings["stages"].engines.items()}
        heads = {s.name for s in whole.stages if len(s.modalities) > 1}
        least = {n: sum(shares[name] for name in engines or heads) for n, engines in ran.items() if n != "both"}
        limit = FULL if not beside else BUSY
        facts = {"fixture": name, "threads": threads, "busy": beside}
        every = sum(shares.values())
        return [facts | _row(timings, n, least[n] / every if n in least else None, limit) for n in cases]


def _row(timings: dict[str, Timing], name: str, expected: float | None, limit: float) -> Row:
    mine, plain, stages = (timings[n] for n in (name, "plain", "stages"))
    found = ratio(mine.total, plain.total)
    of_stages = mine.ms / stages.ms
    ok = found.value <= limit if expected is None else of_stages <= expected + SLACK
    return {
        "case": name,
        "ms": mine.ms,
        "paced_ms": mine.paced_ms,
        "plain_ms": plain.ms,
        "ratio": found.value,
        "ratio_95": [found.low, found.high],
        "of_stages": of_stages,
        "expected": expected,
        "runs": mine.total.runs,
        "ok": ok,
    }


def show(rows: Sequence[Row]) -> None:
    """Prints a table."""
    table = Table(box=None, pad_edge=False)
    columns = ("fixture", "threads", "busy", "case", "ms", "x plain", "95 %", "x stages", "expected", "ok")
    for column in columns:
        table.add_column(column, justify="left" if column in ("fixture", "case", "ok") else "right")
    for r in rows:
        low, high = r["ratio_95"]
        table.add_row(
            r["fixture"],
            str(r["threads"]),
            str(r["busy"]),
            r["case"],
            f"{r['ms']:.3f}",
            f"{r['ratio']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{r['of_stages']:.2f}",
            "" if r["expected"] is None else f"{r['expected']:.2f}",
            "yes" if r["ok"] else "no",
        )
    Console(width=120).print(table)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIXTURES)}; default: {NAMES}")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], help="default: 1,2")
    parser.add_argument("--busy", type=_numbers, default=[0, 1], help="busy processes beside it; default: 0,1")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run; default: %(default)s")
    parser.add_argument("--overhead-runs", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="where to keep the results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    overhead = measure_overhead(options.overhead_runs)
    rows: list[Row] = []
    for name in options.names or NAMES:
        bundle = FOLDER / f"{name}-both.edgemm"
        FOLDER.mkdir(parents=True, exist_ok=True)
        convert(build(name), bundle, *OPTIONS)
        for threads in options.threads:
            for beside in options.busy:
                rows += measure(name, bundle, threads, beside, options.seconds)
                show([r for r in rows if (r["fixture"], r["threads"], r["busy"]) == (name, threads, beside)])
    for call, added in overhead["added_us_per_stage"].items():
        print(f"{call}: {added:.1f} µs per stage above onnxruntime (limit {OVERHEAD_US:g})")
    if options.json:
        keep(options.json, [*rows, {"fixture": "tiny", **overhead}])


if __name__ == "__main__":
    main()
