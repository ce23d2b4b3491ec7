"""Accuracy of plans on this machine: stages in ONNX Runtime, float and planned, on the search samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgemm.data import Samples, Subset
from edgemm.graph import digest, let_go
from edgemm.memory import give_back_memory
from edgemm.metrics import Metric, choose_output, collect_labels, collect_outputs, numeric_parts, score
from edgemm.partition import Stage, StageGraph
from edgemm.quant.apply import apply_plan
from edgemm.quant.cache import Results, key_of
from edgemm.quant.chain import Chain, OpenStage, filled
from edgemm.quant.plan import FLOAT, Decision, QuantPlan
from edgemm.quant.search import Accuracy
from edgemm.quant.table import CalibrationTable
from edgemm.tensors import Feed, IOSpec

OPEN_BYTES = 64 * 2**20
"""Weights of planned forms of stages that stay open; at least one form of each stage does."""

ERROR_SAMPLES = 32
"""Search samples that the output error is taken over."""

COMPLETE = ""
"""Key of the samples in which no modality is blank."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which number says how good outputs are: a metric, its label array, its output (None: the first)."""

    metric: Metric
    label: str | None = None
    output: str | None = None


@dataclass(slots=True)
class ChainMeasure:
    """Accuracy and output error of plans. Keeps float outputs once, and sessions of the forms last used.

    Attributes:
        stage_graph: The float stages.
        io: The model's signature.
        table: The ranges that plans are applied with.
        samples: The search samples: neither calibration nor evaluation.
        scoring: The metric.
        blanks: Modality -> the search samples with that modality blank.
        results: Numbers of earlier runs.
        reference: The float stages to compare with, where those of `stage_graph` have other weights.
    """

    stage_graph: StageGraph
    io: IOSpec
    table: CalibrationTable
    samples: Samples
    scoring: Scoring
    blanks: Mapping[str, Samples] = field(default_factory=dict)
    results: Results = field(default_factory=Results)
    reference: StageGraph | None = None
    _open: dict[tuple[str, str], OpenStage] = field(default_factory=dict)
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    _float: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    _few: dict[str, np.ndarray] = field(default_factory=dict)
    _context: str = ""
    _seen: list[list[object]] = field(default_factory=list)

    def accuracy(self, plan: QuantPlan) -> Accuracy:
        """Returns how much worse the metric is than float, over all search samples, complete and blank.

        Raises:
            DataError: The metric does not fit the outputs or labels.
            BackendError: ONNX Runtime fails in a stage.
        """
        if not any(d.precision != FLOAT for d in plan.decisions):
            return Accuracy(0.0, dict.fromkeys(self.blanks, 0.0))
        key = self._key("accuracy", plan)
        known = self.results.get(key)
        if known is None:
            known = asdict(self.accuracy_of(lambda samples: self._outputs(plan, samples)))
            self.results.put(key, known)
        return Accuracy(known["drop"], known["blank"])

    def accuracy_of(self, outputs: Callable[[Samples], Mapping[str, np.ndarray]]) -> Accuracy:
        """Returns how much worse than float any outputs are; `outputs` computes them for samples.

        Raises:
            DataError: The metric does not fit the outputs or labels.
            BackendError: ONNX Runtime fails in a stage.
        """
        blank = {name: self._drop(outputs(samples), name, samples) for name, samples in self.blanks.items()}
        return Accuracy(self._drop(outputs(self.samples), COMPLETE, self.samples), blank)

    def _drop(self, planned: Mapping[str, np.ndarray], kind: str, samples: Samples) -> float:
        scoring, name = self.scoring, choose_output(self.io, self.scoring.output)
        labels = collect_labels(samples, scoring.label) if scoring.label is not None else None
        if kind not in self._float:
            self._float[kind] = self._reference(samples)
        before, after = (
            score(scoring.metric, outputs, name, labels=labels, reference=self._float[kind])
            for outputs in (self._float[kind], planned)
        )
        return float(scoring.metric.drop(before, after))

    def output_error(self, plan: QuantPlan) -> float:
        """Returns the largest difference from float, relative to the largest magnitude of each output.

        Over every element of every result output of the first `ERROR_SAMPLES` samples: a mean would hide the one
        sample that a recurrent model lost. Infinite when an output that is finite in float is not any more.

        Raises:
            BackendError: ONNX Runtime fails in a stage.
        """
        key = self._key("error", plan)
        known = self.results.get(key)
        if known is None:
            known = self._output_error(plan)
            self.results.put(key, known)
        return float(known)

    def _output_error(self, plan: QuantPlan) -> float:
        few = Subset(self.samples, tuple(range(min(ERROR_SAMPLES, len(self.samples)))))
        if not self._few:
            self._few = self._reference(few)
        planned = self._outputs(plan, few)
        worst = 0.0
        for name, reference in self._few.items():
            a, b = (
                np.concatenate([part.astype(np.float64).ravel() for part in numeric_parts(value)])
                for value in (reference, planned[name])
            )
            finite = np.isfinite(a)
            if not np.isfinite(b[finite]).all():
                return float("inf")
            if finite.any():
                scale = max(float(np.abs(a[finite]).max()), 1e-12)
                worst = max(worst, float(np.abs(a[finite] - b[finite]).max()) / scale)
        return worst

    def _reference(self, samples: Samples) -> dict[str, np.ndarray]:
        if self.reference is None:
            return self._outputs(None, samples)
        return replace(self, stage_graph=self.reference, reference=None, _open={}, _sizes={})._outputs(
            None, samples
        )

    def _outputs(self, plan: QuantPlan | None, samples: Samples) -> dict[str, np.ndarray]:
        chain = Chain(self.stage_graph, self.io, opened=self._sessions(plan))

        def run(feed: Feed) -> Mapping[str, np.ndarray]:
            size = self.io.batch
            if not isinstance(size, int) or size == 1:
                return chain.run(feed)
            return {n: v[: len(v) // size] for n, v in chain.run(filled(feed, self.io)).items() if v.ndim}

        return collect_outputs(run, self.io, samples, reset=chain.reset)

    def _sessions(self, plan: QuantPlan | None) -> dict[str, OpenStage]:
        return {stage.name: self._session(stage.name, plan) for stage in self.stage_graph.stages}

    def _session(self, name: str, plan: QuantPlan | None) -> OpenStage:
        decisions = plan.stage(name) if plan is not None else ()
        form = form_key(decisions)
        key = name, form
        if key not in self._open:
            stage = next(s for s in self.stage_graph.stages if s.name == name)
            model = self.applied(stage, plan) if plan is not None and form else stage.model
            if form:
                self._make_room(4 * stage.parameters)
                self._sizes[key] = 4 * stage.parameters
            self._open[key] = self.opened(name, model) if form else OpenStage.open(name, model)
            del model
            let_go(stage.model)
            give_back_memory(4 * stage.parameters)
        return self._open[key]

    def applied(self, stage: Stage, plan: QuantPlan) -> ir.Model:
        """Returns the graph of a stage under a plan."""
        return apply_plan(stage, plan, self.table)

    def opened(self, name: str, model: ir.Model) -> OpenStage:
        """Returns the session of a planned graph."""
        return OpenStage.open(name, model)

    def _make_room(self, size: int) -> None:
        for key in list(self._sizes):
            if sum(self._sizes.values()) + size <= OPEN_BYTES:
                return
            del self._open[key], self._sizes[key]

    def rest(self) -> None:
        """Closes every session; they are opened again when they are needed."""
        self._open.clear()
        self._sizes.clear()

    def context(self) -> str:
        """Returns a digest of everything but the plan that accuracy depends on."""
        if not self._seen:  # reads every sample: kept when weights change
            self._seen += [[len(s), getattr(s, "digest", None)] for s in (self.samples, *self.blanks.values())]
        if not self._context:
            self._context = key_of(
                [digest(s.model) for s in self.stage_graph.stages],
                self.table.to_json(),
                self._seen,
                list(self.blanks),
                [self.scoring.metric.name, self.scoring.label, self.scoring.output],
            )
        return self._context

    def _key(self, kind: str, plan: QuantPlan) -> str:
        return key_of(kind, self.context(), [form_key(plan.stage(s.name)) for s in self.stage_graph.stages])


def form_key(decisions: tuple[Decision, ...]) -> str:
    """Returns a key of everything in a stage's decisions that changes its graph; empty for plain float."""
    parts = [(d.node, d.precision, dict(d.options)) for d in decisions if d.precision != FLOAT or d.options]
    return key_of(parts) if parts else ""
