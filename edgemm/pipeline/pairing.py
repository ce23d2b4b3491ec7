"""A model in one engine and in one per stage, both in a bundle: the one for calls in which everything is new.

That is worth its size where one engine is faster than the stages, and a call that reuses an encoder faster than
either. What both give is compared: it is not the same bit for bit, since one engine fuses across the cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgemm.compare import ParityReport
from edgemm.partition import StageGraph
from edgemm.pipeline.candidates import WHOLE
from edgemm.pipeline.lineup import MARGIN, Accept, LineUp, anything, exact, onnxruntime
from edgemm.pipeline.outcome import Judged
from edgemm.pipeline.proposals import Proposal, float_proposal
from edgemm.runtime.fusion import FusionSession
from edgemm.tensors import Feed

BOTH = "both"
"""The layout that is asked for."""

WORTH = 0.8
"""Most that a call which reuses the longest encoder may take of one on the whole graph, where nobody asked."""


def worth_trying(lineups: Sequence[LineUp]) -> bool:
    """Returns whether the times of single graphs promise that one engine is faster, and reuse faster still."""
    staged, whole = (next((u for u in lineups if (u.layout.name == WHOLE) is one), None) for one in (False, True))
    if staged is None or whole is None:
        return False
    encoders = {s.name for s in staged.layout.stages if s.role == "encoder"}
    times = {
        name: lane.ms(*best)
        for name, lane in staged.lanes.items()
        if (best := lane.best([form for form, _ in lane.ratios], anything)) is not None
    }
    longest = max((ms for name, ms in times.items() if name in encoders), default=0.0)
    return _pays(whole.ms(), staged.ms(), longest)


def pays(whole: Judged, staged: Judged, stages: StageGraph) -> bool:
    """Returns whether both are worth their size, by what was measured of whole calls."""
    one, parts = (j.timings[j.candidate.variant.name] for j in (whole, staged))
    longest = max((parts.engine_ms(s.name) for s in stages.stages if s.role == "encoder"), default=0.0)
    return _pays(one.ms, parts.ms, longest)


def _pays(whole: float, staged: float, longest: float) -> bool:
    return MARGIN * whole < staged and staged - longest < WORTH * whole


def partner(chosen: Judged, order: Sequence[Proposal], lineups: Sequence[LineUp]) -> Proposal | None:
    """Returns what was chosen in the other layout: also with integers, as exact, on as few backends; or None.

    Args:
        chosen: What ships.
        order: Proposals with integers, the best first.
        lineups: Times of the float graphs.
    """
    mine = chosen.proposal
    one = mine.layout.name != WHOLE
    if mine.integer:
        fits = (p for p in order if p.integer and (p.layout.name == WHOLE) is one and (p.plain or not mine.plain))
        return min(fits, key=lambda p: abs(p.drop - mine.drop), default=None)
    accept: Accept = onnxruntime if mine.plain else exact if all(k.exact for k in mine.kinds) else anything
    lineup = next((u for u in lineups if (u.layout.name == WHOLE) is one), None)
    return float_proposal(lineup, accept, f"float-{accept.__name__}-{lineup.layout.name}") if lineup else None


def compare(
    whole: Judged, staged: Judged, sessions: Mapping[str, FusionSession], feeds: Sequence[Feed]
) -> ParityReport:
    """Returns how far the outputs of both are apart; states go on from feed to feed."""
    report = ParityReport()
    one, parts = (sessions[j.candidate.variant.name] for j in (whole, staged))
    one.reset_state()
    parts.reset_state()
    for number, feed in enumerate(feeds):
        report.add(parts.run(feed), one.run(feed), number)
    return report
