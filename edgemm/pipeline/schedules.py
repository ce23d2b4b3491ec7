"""How the engines of a candidate share the cores, measured: once per layout, and on what ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgemm.bundle import Schedule
from edgemm.pipeline.candidates import Candidate, Workbench
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.tuning import Tuning, find_schedule
from edgemm.tensors import Feed

SECONDS = 1.0
"""How long two schedules are compared."""


@dataclass(slots=True)
class Schedules:
    """What was measured of schedules.

    Attributes:
        bench: Opens candidates.
        feeds: Gives what is run.
        timed: Whether anything may be chosen by time.
    """

    bench: Workbench
    feeds: Callable[[], Sequence[Feed]]
    timed: bool
    _found: dict[str, tuple[str, Tuning]] = field(default_factory=dict)

    def known(self, candidate: Candidate) -> bool:
        """Returns whether `of` would measure nothing on this very candidate."""
        name = self._found.get(candidate.variant.layout, ("", None))[0]
        return not self._chosen(candidate) or name == candidate.variant.name

    def of(self, candidate: Candidate, *, own: bool = False) -> Tuning | None:
        """Returns what was measured on the first candidate of its layout; None where there is nothing to choose.

        Args:
            candidate: A variant that is built.
            own: Measure this very candidate, where another one was.

        Raises:
            BackendError: An engine does not open or run.
        """
        if not self._chosen(candidate):
            return None
        layout = candidate.variant.layout
        if layout not in self._found or (own and not self.known(candidate)):

            def opened(schedule: Schedule) -> FusionSession:
                return self.bench.open(scheduled(candidate, Tuning(schedule)))

            tuning = find_schedule(opened, self.feeds(), threads=self.bench.threads, seconds=SECONDS)
            self._found[layout] = candidate.variant.name, tuning
        return self._found[layout][1]

    def _chosen(self, candidate: Candidate) -> bool:
        return self.timed and len(candidate.variant.engines) > 1


def scheduled(candidate: Candidate, tuning: Tuning | None) -> Candidate:
    """Returns a candidate with the schedule that was found; as it is where none was measured."""
    if tuning is None:
        return candidate
    return replace(candidate, variant=replace(candidate.variant, schedule=tuning.schedule))
