"""Tells whether a result is what a bundle gives for its samples, and which one: the judge of `benchmarks.soak`."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgemm.runtime import open_session
from edgemm.runtime.stream_result import Result

GRID = 2.0**20
"""Capture times are multiples of 1 / GRID seconds, so that a time tells which sample it belongs to, exactly."""

KINDS = 6
"""Different samples of each modality."""


class Oracle:
    """Knows what each bundle gives for each combination of samples, by running it alone."""

    def __init__(self, bundles: Sequence[Path], samples: Mapping[str, np.ndarray]) -> None:
        """Runs every combination, zeros where a modality lacks.

        Args:
            bundles: Of one signature, one input per modality.
            samples: Input -> rows, at least one; what is no input is left out.

        Raises:
            ValueError: A modality has several inputs, or two bundles give the same for the same samples.
        """
        with open_session(bundles[0], cache="off") as session:
            inputs = {i.name: session.io.modalities[i.name] for i in session.io.feed_inputs}
        if len(set(inputs.values())) < len(inputs):
            raise ValueError("a soak needs a model with one input per modality")
        self.names = {modality: name for name, modality in inputs.items()}
        self.rows = {modality: list(samples[name][:KINDS]) for modality, name in self.names.items()}
        kinds = [[None, *range(len(rows))] for rows in self.rows.values()]
        self._known: dict[tuple[int | None, ...], list[bytes]] = {key: [] for key in itertools.product(*kinds)}
        for path in bundles:
            with open_session(path, cache="off") as session:
                for key, digests in self._known.items():
                    digests.append(digest(session.run(self.feed(key))))
        if any(len(set(digests)) < len(bundles) for digests in self._known.values()):
            raise ValueError("a soak needs bundles that give other results")

    def feed(self, key: Sequence[int | None]) -> dict[str, np.ndarray]:
        """Returns the inputs of a combination: for each modality the number of a sample, or None."""
        return {
            self.names[m]: (np.zeros_like(rows[0]) if at is None else rows[at])[None]
            for (m, rows), at in zip(self.rows.items(), key, strict=True)
        }

    def number(self, modality: str, t: float) -> int:
        """Returns which sample is captured at `t`."""
        return (round(t * GRID) * 40503 >> 4) % len(self.rows[modality])

    def which(self, key: tuple[int | None, ...], outputs: Mapping[str, np.ndarray]) -> int | None:
        """Returns which bundle gave `outputs`; None if none did."""
        found = digest(outputs)
        return next((at for at, known in enumerate(self._known[key]) if known == found), None)


def digest(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Returns what tells results apart, bit for bit."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(outputs):
        hashed.update(outputs[name].tobytes())
    return hashed.digest()


@dataclass
class Taken:
    """What came out of one stream, or of one caller.

    Attributes:
        results: How many.
        wrong: Those that no bundle gives for their samples.
        repeated: Those that came again, or out of order.
        changes: How often they came from another bundle than the one before.
        raised: Exceptions that the callback raised on purpose.
        told: Exceptions that the stream told of, by type.
    """

    results: int = 0
    wrong: int = 0
    repeated: int = 0
    changes: int = 0
    raised: int = 0
    told: Counter[str] = field(default_factory=Counter)
    _bundle: int | None = None
    _time: float = float("-inf")

    def take(self, oracle: Oracle, key: tuple[int | None, ...], outputs: Mapping[str, np.ndarray]) -> None:
        """Counts a result."""
        self.results += 1
        bundle = oracle.which(key, outputs)
        self.wrong += bundle is None
        self.changes += None not in (bundle, self._bundle) and bundle != self._bundle
        self._bundle = bundle

    def take_result(self, oracle: Oracle, result: Result) -> None:
        """Counts a result of a stream."""
        again = result.number != self.results or result.time <= self._time
        self.repeated += again
        self._time = result.time
        ages = result.ages
        key = tuple(None if (age := ages[m]) is None else oracle.number(m, result.time - age) for m in oracle.rows)
        self.take(oracle, key, result.outputs)
