"""Which variant ships: precisions, engines and layouts compete; accuracy and latency are measured, never assumed.

The baseline of every latency is the exported graph, unchanged, in one ONNX Runtime session with default options:
what a user has without edgemm.

    race floats ─▶ calibrate ─▶ race integer forms ─▶ search (groups, front) ─▶ proposals ─▶ evaluate, time ─▶ ship
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgemm.errors import BackendError, QuantizationError
from edgemm.partition import StageGraph
from edgemm.pipeline import candidates as make
from edgemm.pipeline.candidates import Candidate, Layout, Workbench
from edgemm.pipeline.engines import EngineKind, engine_kinds
from edgemm.pipeline.forms import timed
from edgemm.pipeline.integers import Integers
from edgemm.pipeline.lineup import MARGIN, LineUp, best_lineup, race_floats
from edgemm.pipeline.objections import REMEDY, apart, far_slower, inaccurate, over_budget, over_limit, too_slow
from edgemm.pipeline.outcome import BASELINE, Judged, Outcome, assemble
from edgemm.pipeline.pairing import BOTH, compare, partner, pays, worth_trying
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.proposals import Proposal, float_proposals, in_order
from edgemm.pipeline.race import Track, stage_feeds
from edgemm.pipeline.schedules import Schedules, scheduled
from edgemm.pipeline.scoring import Scorer, Scorers, outputs_of, score_float
from edgemm.pipeline.splits import Splits
from edgemm.pipeline.timing import latency_feeds
from edgemm.quant.plan import FLOAT
from edgemm.recipe import Recipe
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.turns import Timing, time_sessions
from edgemm.tensors import Feed

if TYPE_CHECKING:
    from edgemm.quant.measure import ChainMeasure

ATTEMPTS = 4
"""Proposals of each layout that are built and evaluated before the float model ships."""


@dataclass(slots=True)
class Contest:
    """Chooses the variant; `layouts` holds those that may ship, the preferred one first."""

    recipe: Recipe
    stages: StageGraph
    baseline: Layout
    layouts: tuple[Layout, ...]
    splits: Splits
    bench: Workbench
    progress: Progress
    clock: Clock
    notes: list[str] = field(default_factory=list)
    tracks: dict[str, Track] = field(default_factory=dict)
    lineups: list[LineUp] = field(default_factory=list)
    integers: Integers | None = None
    _candidates: dict[str, Candidate] = field(default_factory=dict)
    _sessions: dict[str, FusionSession] = field(default_factory=dict)
    _scorers: Scorers | None = None
    _search_scorer: Scorer | None = None
    _schedules: Schedules = field(init=False)

    def __post_init__(self) -> None:
        self._schedules = Schedules(self.bench, self._feeds, self.timed)

    def run(self) -> Outcome:
        """Returns the variants of the bundle.

        Raises:
            QuantizationError: int8 was demanded and cannot be had within the budget.
        """
        with self.clock("build"):
            folder = self.bench.folder
            baseline = make.build(BASELINE, self.baseline, make.float_models, (EngineKind(),), folder, raw=True)
        kinds = self._kinds()
        with self.clock("race"):
            self._open_tracks()
            for layout in self.layouts:
                self.progress.status("race", f"float, {layout.name}, {sum(not k.batched for k in kinds)} engines")
                self.lineups.append(race_floats(layout, self.tracks, kinds))
        points = self._integers()
        self._close_tracks()
        with self.clock("verify"):
            self._enter(baseline)  # not before: the races need the memory
            self._make_scorers()
            chosen, refused, others = self._choose(points, self._floats())
        return assemble(self.recipe, self.stages, self.lineups, self.integers, [chosen, *others], refused)

    @property
    def timed(self) -> bool:
        """Whether anything is chosen by time."""
        return timed(self.recipe)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.progress.step("note", text)

    # -- what may compete ------------------------------------------------------------------------------------

    def _kinds(self) -> tuple[EngineKind, ...]:
        kinds = engine_kinds(self.recipe.engine, self.bench.threads)
        if not self.timed:
            return kinds[:1]
        return tuple(k for k in kinds if k.exact) if self.recipe.quantize.precision == FLOAT else kinds

    def _open_tracks(self) -> None:
        samples = self.splits.calibration if self.splits.calibration is not None else self.splits.any
        feeds = stage_feeds(self.stages, self.bench.io, latency_feeds(self.bench.io, samples, self.bench.sizes))
        for layout in self.layouts:
            alone = len(layout.stages) == 1
            for stage in layout.stages:
                self.tracks[stage.name] = Track(
                    stage, feeds[stage.name], self.bench.folder, self.bench.threads, alone
                )

    def _close_tracks(self) -> None:
        for track in self.tracks.values():
            track.close()

    def _integers(self) -> list[Proposal]:
        """Returns the proposals with integers; none where no integers are wanted or no data allows them."""
        if self.recipe.quantize.precision == FLOAT:
            return []
        if self.splits.calibration is None or self.splits.search is None:
            self._note("no calibration samples (--calib): nothing becomes integer")
            return []
        self.integers = Integers(
            self.recipe,
            self.stages,
            self.bench.io,
            self.splits,
            self.lineups,
            self.tracks,
            self.bench.threads,
            self.progress,
            self.clock,
        )
        points = self.integers.find(self._float_holds)
        self.notes += self.integers.warnings
        return points

    def _float_holds(self, measure: ChainMeasure) -> bool:
        """Returns whether the fastest float variant, which may round, is within the budget on search samples."""
        fastest = self._floats()[0]
        if all(k.exact for k in fastest.kinds):
            return True
        try:
            session = self._sessions[self._build(fastest).variant.name]
        except BackendError:
            return False
        batch = self.recipe.evaluate.batch
        accuracy = measure.accuracy_of(lambda samples: outputs_of(session, samples, batch))
        return accuracy.within(self.recipe.evaluate.max_drop)

    # -- proposals, built and judged -------------------------------------------------------------------------

    def _floats(self) -> list[Proposal]:
        """Returns the float proposals: rounded to bf16 somewhere, and exact ones; the last is the surest."""
        chosen = self.integers.lineup if self.integers is not None else None
        lineups = [chosen or best_lineup(self.lineups), *self.lineups]
        return float_proposals(
            lineups, rounded=self.splits.evaluation is not None
        )  # else what would tell its cost?

    def _make_scorers(self) -> None:
        """Makes what scores the evaluation samples, complete and blank, and the search samples."""
        evaluate, base = self.recipe.evaluate, self._sessions[BASELINE]
        if self.splits.evaluation is not None:
            samples = self.splits.evaluation
            twins = self.integers.silence.twins(samples) if self.integers is not None else {}
            self._scorers = Scorers.of_float(base, samples, twins, self.splits.label, evaluate)
        if self.splits.search is not None:
            few = self.splits.search
            self._search_scorer = score_float(base, few, self.splits.search_label, evaluate)

    def _choose(
        self, points: Sequence[Proposal], floats: Sequence[Proposal]
    ) -> tuple[Judged, Judged | None, list[Judged]]:
        """Returns what ships, the best integer proposal that does not, and a fallback for other devices."""
        section = self.recipe.quantize
        sure = self._best_float(floats)
        rounded = [f for f in floats if not all(k.exact for k in f.kinds)]
        order = in_order([*points, *rounded], section.objective)
        held, refused = self._held(order, sure)
        if not held and self.integers is not None and not self.integers.searched:
            points = self.integers.search()
            self._close_tracks()
            order = in_order(points, section.objective)
            held, again = self._held(order, sure)
            refused = refused or again
        chosen = self._fastest(list(held.values()), sure)
        if chosen is None and section.integers_demanded:
            reason = self.integers.nothing() if self.integers is not None else "there are no samples"
            reason = refused.objection or reason if refused is not None else reason
            raise QuantizationError(f"int8 was demanded and cannot ship: {reason}.", hint=REMEDY)
        if chosen is None or (section.objective == "accuracy" and sure.objection is None):
            chosen = sure
        if (missed := over_limit(self.recipe, chosen)) is not None:
            self._note(f"nothing is fast enough; what ships takes {missed}")
        chosen = self._paired(self._retuned(chosen), order)
        others = self._fallback(chosen, order, floats, sure)
        if not chosen.timings:  # nothing was chosen by time; what ships is measured all the same
            chosen.timings = self._time([chosen.candidate])
        return chosen, refused if not chosen.proposal.integer else None, others

    def _held(self, order: Sequence[Proposal], sure: Judged) -> tuple[dict[str, Judged], Judged | None]:
        """Returns the first proposal of each layout that holds, and the first integer one that does not.

        What a cut costs shows only in the session.
        """
        demanded = self.recipe.quantize.integers_demanded
        held: dict[str, Judged] = {}
        refused: Judged | None = None
        attempts = dict.fromkeys((layout.name for layout in self.layouts), 0)
        slow: set[tuple[str, tuple[EngineKind, ...], bool]] = set()
        for proposal in order:
            layout, form = proposal.layout.name, (proposal.layout.name, proposal.kinds, proposal.integer)
            if layout in held or attempts[layout] >= ATTEMPTS or (demanded and not proposal.integer):
                continue
            if form in slow:  # a milder plan on the same engines gains nothing
                continue
            attempts[layout] += 1
            judged = self._judged(proposal, sure, told=proposal.integer and refused is None)
            if judged.objection is None:
                held[layout] = judged
                continue
            self.progress.step("verify", f"{judged.proposal}: refused, {judged.objection}")
            if far_slower(self.recipe, judged, sure):
                slow.add(form)
            if proposal.integer and refused is None:
                refused = judged
        return held, refused

    def _fastest(self, held: Sequence[Judged], sure: Judged) -> Judged | None:
        """Returns the fastest of several, measured together; the preferred layout where it is no slower."""
        if len(held) < 2 or not self.timed:
            return next(iter(held), None)
        timings = self._time([*(j.candidate for j in held), sure.candidate])
        for judged in held:
            judged.timings = timings
        preferred = [layout.name for layout in self.layouts]
        held = sorted(held, key=lambda j: preferred.index(j.proposal.layout.name))
        best = min(j.ms for j in held)
        return next(j for j in held if j.ms <= MARGIN * best)

    def _best_float(self, floats: Sequence[Proposal]) -> Judged:
        """Returns the fastest exact float variant, timed; the graph as it was exported competes too."""
        exacts = [f for f in floats if all(k.exact for k in f.kinds)]
        built = [Judged(f, self._build(f)) for f in exacts[:2]]
        if self.timed and (len(self.stages.stages) == 1 or any(u.layout.name == make.WHOLE for u in self.lineups)):
            as_is = Proposal(BASELINE, self.baseline, (EngineKind(),), None, math.nan)
            built.append(Judged(as_is, self._candidates[BASELINE]))
        if self.timed or len(built) > 1:
            timings = self._time([j.candidate for j in built])
            for judged in built:
                judged.timings = timings
        best = min(j.ms for j in built)
        sure = next((j for j in built if j.ms <= MARGIN * best), built[0])
        for judged in built:
            if judged is not sure:
                self._leave(judged.candidate)
        sure.candidate = self._scored(sure.candidate)
        sure.objection = over_limit(self.recipe, sure)
        return sure

    def _judged(self, proposal: Proposal, sure: Judged, *, told: bool = False) -> Judged:
        """Builds, times and scores a proposal; an objection says why it may not ship.

        What is slow is not scored, which may take longer than all else, unless its accuracy is to be told as well.
        """
        candidate = self._build(proposal)
        judged = Judged(proposal, candidate)
        if self.timed or self.recipe.quantize.max_latency_ms is not None:
            judged.timings = self._time([candidate, sure.candidate])
            judged.objection = too_slow(self.recipe, judged, sure)
        if judged.objection is None and self._search_scorer is not None and not proposal.integer:
            found = self._search_scorer.measure(self._sessions[candidate.variant.name])
            judged.objection = over_budget(self.recipe, found, "search")
        if judged.objection is None or told:
            judged.candidate = self._scored(candidate)
            judged.objection = inaccurate(self.recipe, judged.candidate.variant.accuracy) or judged.objection
        if judged.objection is not None:
            self._leave(judged.candidate)
        return judged

    def _retuned(self, judged: Judged) -> Judged:
        """Returns what ships with the schedule that is the fastest for it, not for the first of its layout."""
        candidate = judged.candidate
        if not self._schedules.known(candidate):
            self.bench.close_one(self._sessions.pop(candidate.variant.name))
            tuning = self._schedules.of(candidate, own=True)
            judged.candidate = self._enter(scheduled(candidate, tuning))
            judged.timings = self._time([judged.candidate])
        judged.tuning = self._schedules.of(judged.candidate)
        return judged

    def _paired(self, chosen: Judged, order: Sequence[Proposal]) -> Judged:
        """Returns what ships first: with both layouts the one that is one engine, the other in its `staged`."""
        asked, alone = self.recipe.layout == BOTH, chosen.proposal.layout.name == make.WHOLE
        if len(self.layouts) < 2 or not (asked or (alone and worth_trying(self.lineups))):
            return chosen
        proposal = partner(chosen, order, self.lineups)
        objection: str | None = "nothing in the other layout is like what ships"
        if proposal is not None:
            other = Judged(proposal, self._scored(self._build(proposal)))
            other.tuning = self._schedules.of(other.candidate)
            chosen.timings = other.timings = self._time([chosen.candidate, other.candidate])
            whole, staged = (chosen, other) if alone else (other, chosen)
            whole.parity = compare(whole, staged, self._sessions, self._feeds())
            objection = inaccurate(self.recipe, other.candidate.variant.accuracy) or apart(
                self.recipe, whole, staged
            )
            if objection is None and (asked or pays(whole, staged, self.stages)):
                whole.staged = staged
                return whole
            self._leave(other.candidate)
        if asked:
            self._note(f"only {chosen.proposal.layout.name} ships, not both layouts: {objection}")
        return chosen

    def _fallback(
        self, chosen: Judged, order: Sequence[Proposal], floats: Sequence[Proposal], sure: Judged
    ) -> list[Judged]:
        """Returns a variant for devices that have ONNX Runtime alone, where what ships needs more."""
        if chosen.proposal.plain:
            return []
        if chosen.timings and chosen is not sure:
            self.bench.close_one(self._sessions.pop(chosen.candidate.variant.name))
        for proposal in order:
            if proposal.plain and proposal.integer:
                judged = self._judged(proposal, sure)
                if judged.objection is None:
                    return [judged]
                break
        if sure.proposal.plain:
            return [sure]
        plain = [f for f in floats if f.plain]
        if not plain:
            return []
        judged = Judged(plain[0], self._scored(self._build(plain[0])))
        judged.timings = self._time([judged.candidate])
        return [judged]

    # -- building, scoring, timing ---------------------------------------------------------------------------

    def _enter(self, candidate: Candidate) -> Candidate:
        self._candidates[candidate.variant.name] = candidate
        self._sessions[candidate.variant.name] = self.bench.open(candidate)
        return candidate

    def _leave(self, candidate: Candidate) -> None:
        name = candidate.variant.name
        if name != BASELINE and name in self._sessions:
            self.bench.discard(self._sessions.pop(name), candidate)

    def _build(self, proposal: Proposal) -> Candidate:
        models: make.Models = make.float_models
        if proposal.plan is not None:
            assert self.integers is not None
            assert self.integers.table is not None
            table, weights = self.integers.table, None
            if proposal.mended is not None:
                table, weights = proposal.mended.table, proposal.mended.weights
            models = make.planned_models(proposal.plan, table, proposal.layout, weights)
        if proposal.name in self._sessions:
            return self._candidates[proposal.name]
        with self.clock("build"):
            folder = self.bench.folder
            candidate = make.build(proposal.name, proposal.layout, models, proposal.kinds, folder)
            return self._enter(scheduled(candidate, self._schedules.of(candidate)))

    def _feeds(self) -> list[Feed]:
        samples = self.splits.evaluation if self.splits.evaluation is not None else self.splits.any
        return latency_feeds(self.bench.io, samples, self.bench.sizes)

    def _time(self, candidates: Sequence[Candidate]) -> dict[str, Timing]:
        seconds = self.recipe.quantize.measure_seconds
        names = list(dict.fromkeys([BASELINE, *(c.variant.name for c in candidates)]))
        self.progress.status("measure", f"{len(names)} variants, interleaved")
        with self.clock("measure"):
            return time_sessions({n: self._sessions[n] for n in names}, self._feeds(), seconds=seconds)

    def _scored(self, candidate: Candidate) -> Candidate:
        if self._scorers is None:
            return candidate
        variant = candidate.variant
        accuracy = self._scorers.measure(
            self._sessions[variant.name],
            lambda blank: self.progress.status("verify", f"{variant.precision}{blank}"),
        )
        return replace(candidate, variant=replace(variant, accuracy=accuracy))
