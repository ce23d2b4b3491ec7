"""What latencies are measured with: `edgemm.runtime.turns` measures them."""

from __future__ import annotations

from collections.abc import Mapping

from edgemm.data import Samples, make_feed, random_feed, spread
from edgemm.tensors import Feed, IOSpec

FEEDS = 16
"""Different samples that a measurement cycles over."""


def latency_feeds(io: IOSpec, samples: Samples | None, sizes: Mapping[str, int]) -> list[Feed]:
    """Returns feeds of one sample each: real ones spread evenly over `samples`, else one of random numbers.

    `sizes` are what random numbers need: symbolic dimension -> a size at which the model was run.
    """
    if samples is not None and len(samples):
        return [make_feed(io, [samples[i]]) for i in spread(len(samples), FEEDS)]
    return [random_feed(io, sizes)]
