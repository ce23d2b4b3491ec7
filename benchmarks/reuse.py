"""What reuse saves: calls in which everything, one modality, or nothing is new, in one interleaved run.

    python -m benchmarks.reuse BUNDLE --data SAMPLES.npz [--runs 300] [--threads 2] [--json]

The bundle must be staged. Each row is a median over the same samples, and its ratio to a call that runs every
engine and looks at nothing. `expected` is the share of the engines that have to run, from the times of the engines
inside full calls: the rest is what comparing, copying and bookkeeping cost. Results are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.data import make_feed, open_samples, spread
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.cache import CacheMode
from edgemm.runtime.latency import measure
from edgemm.tensors import Feed

SAMPLES = 16


class Case:
    """Calls of one session in which the same modalities are new every time."""

    def __init__(self, session: FusionSession, feeds: Sequence[Feed], new: frozenset[str], *, marks: bool) -> None:
        self.session = session
        self._feeds, self._new, self._marks = feeds, new, marks
        self._modalities = session.io.modalities
        self.feed: dict[str, np.ndarray] = dict(feeds[0])
        self._at = 0

    def __call__(self) -> dict[str, np.ndarray]:
        """Runs once."""
        self._at = (self._at + 1) % len(self._feeds)
        for name, array in self._feeds[self._at].items():
            if self._modalities[name] in self._new:
                self.feed[name] = array
        return self.session.run(self.feed, self._new) if self._marks else self.session.run(self.feed)


def shares(session: FusionSession, feeds: Sequence[Feed]) -> dict[str, float]:
    """Returns the part of each engine in the time of all engines."""
    times: dict[str, list[float]] = {e.name: [] for e in session.variant.engines}
    for at in range(5 * len(feeds)):
        for name, seconds in session.run_timed(feeds[at % len(feeds)])[1].items():
            times[name].append(seconds)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {name: value / sum(medians.values()) for name, value in medians.items()}


def run(bundle: Path, data: str, runs: int, threads: int | None) -> dict[str, Any]:
    """Returns the rows of the table."""
    full = open_session(bundle, threads=threads, cache="off")
    modalities = full.io.modality_names()
    samples = open_samples(data)
    feeds = [make_feed(full.io, [samples[i]]) for i in spread(len(samples), SAMPLES)]
    everything = frozenset(modalities)
    news = {"everything": everything, **{m: frozenset([m]) for m in modalities}, "nothing": frozenset()}
    modes: tuple[CacheMode, ...] = ("auto", "marks")
    cases: dict[str, Case] = {"full": Case(full, feeds, everything, marks=False)}
    for name, new in news.items():
        for mode in modes:
            session = open_session(bundle, threads=threads, cache=mode)
            cases[f"{name} new, {mode}"] = Case(session, feeds, new, marks=mode == "marks")
    for case in cases.values():
        for _ in range(2 * SAMPLES):
            got, expected = case(), full.run(case.feed)
            if any(got[n].tobytes() != expected[n].tobytes() for n in expected):
                raise AssertionError("a reused result differs from a full run")
    part = shares(full, feeds)
    times = measure({n: _plain(c) for n, c in cases.items()}, runs=runs, warmup=20)
    rows = []
    for name, case in cases.items():
        before = case.session.cache_info().ran
        case()
        ran = [n for n, count in case.session.cache_info().ran.items() if count > before[n]]
        rows.append(
            {
                "case": name,
                "ms": times[name].median * 1e3,
                "ratio": times[name].median / times["full"].median,
                "expected": sum(part[n] for n in ran) if before else 1.0,
                "compared": list(case.session.cache_info().compared),
            }
        )
    return {"bundle": str(bundle), "shares": part, "runs": runs, "rows": rows}


def _plain(case: Case) -> Callable[[], object]:
    return case.__call__


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="samples of the model's inputs")
    parser.add_argument("--runs", type=int, default=300, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="most threads inside one operator")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = run(arguments.bundle, arguments.data, arguments.runs, arguments.threads)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    print(", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items()), "of the engines' time")
    for row in result["rows"]:
        print(
            f"{row['case']:28s} {row['ms']:9.3f} ms   ratio {row['ratio']:5.2f}   expected {row['expected']:5.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
