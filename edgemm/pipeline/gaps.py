"""The last step before a bundle is written: what stands for missing modalities, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from edgemm.bundle import Variant
from edgemm.data import Blank
from edgemm.errors import DataError
from edgemm.metrics import choose_output
from edgemm.partition import StageGraph
from edgemm.pipeline import candidates as make
from edgemm.pipeline.candidates import Candidate, Workbench
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.heads import embed, fits, make_head
from edgemm.pipeline.learn import Known, learn
from edgemm.pipeline.missing import Cut, Encoders, Gaps, Rows, add_blanks, add_means, find_cuts
from edgemm.pipeline.modalities import report_files, report_modalities
from edgemm.pipeline.progress import Progress
from edgemm.pipeline.silence import Silence
from edgemm.pipeline.splits import Splits
from edgemm.quant.plan import FLOAT
from edgemm.recipe import Recipe
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.heads import open_heads
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.stand_ins import StandIns

FLOAT_STAGES = "float-stages"
"""Name of the candidate that is every stage in float: with it the report compares."""


class Filler:
    """Makes what one bundle holds for missing modalities."""

    def __init__(
        self, recipe: Recipe, stages: StageGraph, splits: Splits, bench: Workbench, progress: Progress
    ) -> None:
        """Begins with nothing.

        Args:
            recipe: What was asked for.
            stages: The float stages.
            splits: The samples.
            bench: Opens variants; whoever calls closes it.
            progress: Told about every step.
        """
        self.gaps = Gaps()
        self._recipe = recipe
        self._stages = stages
        self._splits = splits
        self._bench = bench
        self._progress = progress
        self._cuts = find_cuts(stages, bench.io)

    def fill(self, variants: Sequence[Variant], files: Mapping[str, bytes | Path]) -> Gaps:
        """Returns what goes into the bundle.

        Args:
            variants: As they ship; refused ones have no engines.
            files: Path in the bundle -> engine, in the folder of the workbench.

        Raises:
            BackendError: An engine fails.
        """
        if len(self._bench.io.modality_names()) < 2:
            return self.gaps
        engines = {name: file for name, file in files.items() if isinstance(file, Path)}
        self._blanks()
        staged = [v for v in variants if v.engines and v.refused is None and _has_cuts(v, self._cuts)]
        if self._splits.calibration is not None:
            for variant in staged:
                self._behind(variant, engines)
            self._heads(staged, engines)
        if self._recipe.missing.report and self._splits.evaluation is not None:
            self._report(variants, engines)
        for note in self.gaps.notes:
            self._progress.step("note", note)
        return self.gaps

    def _blanks(self) -> None:
        samples = self._splits.any_part
        kinds = {Blank.parse(i.blank).kind for i in self._recipe.inputs.values() if i.blank is not None}
        if self._splits.calibration is None and "mean" in kinds:
            self.gaps.notes.append("no calibration samples (--calib): no stream can be filled with 'blank'")
        elif samples is not None or kinds <= {"zeros", "constant", "silence"}:
            add_blanks(self.gaps, Silence(self._recipe, self._bench.io, samples if samples is not None else []))

    def _behind(self, variant: Variant, engines: Mapping[str, Path]) -> None:
        """Adds means, and trained values, for one variant."""
        recipe, io, calibration = self._recipe, self._bench.io, self._splits.calibration
        assert calibration is not None
        options = SessionOptions(threads=recipe.threads)
        encoders = Encoders(io, variant, engines, options, recipe.evaluate.batch)
        silence = Silence(recipe, io, calibration)
        done = iter(range(1, len(self._cuts) + 1))
        add_means(
            self.gaps,
            self._cuts,
            encoders,
            silence,
            variant.name,
            lambda: self._progress.bar(f"means of {variant.name}", next(done), len(self._cuts)),
        )
        means = [m for m in self._cuts if (variant.name, m, "mean") in self.gaps.rows]
        if means:
            self._progress.step("missing", f"{variant.name}: mean embeddings of {', '.join(means)}")
        for modality in recipe.missing.learn:
            if _on_gpu(variant):
                self.gaps.notes.append(f"nothing was trained for '{modality}' ({variant.name}): it runs elsewhere")
            elif modality in means:
                self._learn(variant, engines, encoders, modality)

    def _heads(self, staged: Sequence[Variant], engines: Mapping[str, Path]) -> None:
        """Adds other heads, for the variants whose encoders give what they were trained on."""
        recipe, bench, calibration = self._recipe, self._bench, self._splits.calibration
        assert calibration is not None
        if not recipe.missing.heads:
            return

        def embedded(variant: Variant, files: Mapping[str, Path]) -> dict[str, np.ndarray]:
            options = SessionOptions(threads=recipe.threads)
            encoders = Encoders(bench.io, variant, files, options, recipe.evaluate.batch)
            return embed(bench.io, self._cuts.values(), encoders, calibration)

        given = embedded(self._floats.variant, self._floats.files)
        own = {v.name: embedded(v, engines) for v in staged if not _on_gpu(v)}
        for name, model in recipe.missing.heads.items():
            made = make_head(name, model, bench.io, self._cuts, given, bench.folder)
            variants = tuple(v for v, embeddings in own.items() if fits(made, embeddings, given))
            entry = replace(made, variants=variants)
            self.gaps.heads.append(entry)
            self.gaps.files[entry.file] = (bench.folder / entry.file).read_bytes()
            self._progress.step("missing", f"head '{name}' for sets of {', '.join(entry.modalities)} alone")
            if left := [v.name for v in staged if v.name not in variants]:
                self.gaps.notes.append(
                    f"head '{name}' is not for {', '.join(left)}: its encoders give something else than the float "
                    "ones, or run elsewhere"
                )

    @cached_property
    def _floats(self) -> Candidate:
        """Every stage in float as an engine of its own."""
        kinds = (EngineKind(),) * len(self._stages.stages)
        return make.build(FLOAT_STAGES, make.staged(self._stages), make.float_models, kinds, self._bench.folder)

    def _learn(self, variant: Variant, engines: Mapping[str, Path], encoders: Encoders, modality: str) -> None:
        """Adds a trained value, if it is better than the mean; says so either way."""
        splits, gaps = self._splits, self.gaps
        assert splits.calibration is not None
        assert splits.search is not None
        session = self._open(variant, engines)
        output = choose_output(session.io, self._recipe.evaluate.output)
        step, mean = f"learn {modality}", gaps.rows[variant.name, modality, "mean"]
        try:
            found = learn(
                session,
                Known(self._cuts[modality], encoders, mean, gaps.rows.get(("", modality, "blank"), {})),
                (splits.calibration, splits.search),
                (output, splits.search_label),
                lambda tried, most: self._progress.bar(step, tried, most),
            )
        except DataError as error:
            gaps.notes.append(f"nothing was trained for '{modality}' ({variant.name}): {error}")
            return
        finally:
            self._bench.close_one(session)
        losses = f"loss {found.mean_loss:.4g} with the mean, {found.loss:.4g} with the trained value"
        what = f"{losses}, {found.samples} held-out samples, against {found.target}"
        if found.better:
            gaps.add(modality, "learned", found.rows, variant.name)
            self._progress.step("missing", f"{variant.name}: '{modality}' learned: {what}")
        else:
            gaps.notes.append(
                f"'learned' is not kept for '{modality}' ({variant.name}): not better than the mean by "
                f"more than two standard errors ({what}, standard error of the difference {found.error:.2g})"
            )

    def _report(self, variants: Sequence[Variant], engines: Mapping[str, Path]) -> None:
        """Adds the accuracy for every subset of the modalities, of float and of what ships."""
        splits, recipe, bench = self._splits, self._recipe, self._bench
        assert splits.evaluation is not None
        floats = self._floats
        beside = Gaps(rows=dict(self.gaps.rows))
        if splits.calibration is not None:
            options = SessionOptions(threads=recipe.threads)
            encoders = Encoders(bench.io, floats.variant, floats.files, options, recipe.evaluate.batch)
            silence = Silence(recipe, bench.io, splits.calibration)
            add_means(beside, self._cuts, encoders, silence, FLOAT_STAGES, lambda: None)
        rows = beside.of(FLOAT_STAGES)
        shipped = next((v for v in variants if v.engines and v.refused is None and not _on_gpu(v)), None)
        if shipped is not None and shipped.reuse:  # with something missing, the stages of it run
            shipped = next(v for v in variants if v.name == shipped.reuse)
        if shipped is not None and shipped.precision == FLOAT:  # what was trained for integers is for these alone
            rows |= {key: found for key, found in self.gaps.of(shipped.name).items() if key[1] == "learned"}
        sessions = {"float": self._with_rows(bench.open(floats), rows)}
        if shipped is not None:
            sessions[shipped.name] = self._open(shipped, engines)
        report = report_modalities(
            sessions,
            splits.evaluation,
            splits.label,
            recipe.evaluate,
            lambda done, total: self._progress.bar("modalities", done, total),
        )
        self.gaps.files.update(report_files(report))
        self._progress.step("modalities", f"{len(report['rows'])} cases on {report['samples']} evaluation samples")
        for opened in sessions.values():
            bench.close_one(opened)

    def _open(self, variant: Variant, engines: Mapping[str, Path]) -> FusionSession:
        files = {e.file: engines[e.file] for e in variant.engines}
        return self._with_rows(self._bench.open(Candidate(variant, files)), self.gaps.of(variant.name))

    def _with_rows(self, session: FusionSession, rows: Mapping[tuple[str, str], Rows]) -> FusionSession:
        found = tuple(replace(head, variants=(FLOAT_STAGES, *head.variants)) for head in self.gaps.heads)
        manifest = replace(session.manifest, heads=found)
        heads, own = open_heads(self._bench.folder, manifest, session.variant, SessionOptions())
        session._engines += own  # it closes them
        session.stand_ins = StandIns(session.manifest, session.variant, rows, heads)
        return session


def _has_cuts(variant: Variant, cuts: Mapping[str, Cut]) -> bool:
    """Returns whether an encoder of the variant is an engine of its own."""
    alone = {e.stages[0] for e in variant.engines if len(e.stages) == 1}
    return any(c.encoder is not None and c.encoder.name in alone for c in cuts.values())


def _on_gpu(variant: Variant) -> bool:
    return any("module" in e.options for e in variant.engines)
