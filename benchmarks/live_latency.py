"""What the live histogram adds to a call of a session, in nanoseconds.

    python -m benchmarks.live_latency [--calls 1000] [--rounds 400]

A method that does nothing is called with and without `edgemm.runtime.live.counted`, interleaved in short
rounds; the difference of the fastest rounds is what two clock readings, the wrapper and the histogram cost. The
limit is 1 µs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter_ns

from edgemm.runtime.live import LiveLatency, counted

LIMIT_NS = 1000


class Bare:
    """Stands for a session: the histogram needs nothing else of it."""

    def __init__(self) -> None:
        self.latency = LiveLatency()

    def plain(self, feed: object, changed: object = None) -> object:
        """Does nothing."""
        return feed

    @counted
    def timed(self, feed: object, changed: object = None) -> object:
        """Does nothing, and is counted."""
        return feed


def nanoseconds(call: Callable[[object], object], calls: int) -> float:
    start = perf_counter_ns()
    for _ in range(calls):
        call(None)
    return (perf_counter_ns() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    bare = Bare()
    rounds = [
        [nanoseconds(call, options.calls) for call in (bare.plain, bare.timed)] for _ in range(options.rounds)
    ]
    plain, timed = (min(times) for times in zip(*rounds, strict=True))
    middle = sorted(t - p for p, t in rounds)[len(rounds) // 2]
    print(
        f"a call costs {timed - plain:.0f} ns more (median of {len(rounds)} rounds {middle:.0f}), limit {LIMIT_NS}"
    )


if __name__ == "__main__":
    main()
