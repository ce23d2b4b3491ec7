"""The search's answers from this machine: stages in ONNX Runtime, float and planned, on the search samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgemm.data import Samples, Subset
from edgemm.metrics import Metric, choose_output, collect_labels, collect_outputs, numeric_parts, score
from edgemm.partition import StageGraph
from edgemm.quant.apply import apply_plan
from edgemm.quant.chain import Chain, OpenStage, feeds
from edgemm.quant.plan import INT8, QuantPlan
from edgemm.quant.search import StageLatency
from edgemm.quant.table import CalibrationTable
from edgemm.runtime.latency import measure
from edgemm.tensors import Feed, IOSpec

OPEN_PLANNED = 16
"""Planned forms of stages that stay open; each holds its weights in memory."""

ERROR_SAMPLES = 32
"""Search samples that the output error is taken over."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which number says how good outputs are: a metric, its label array, its output (None: the first)."""

    metric: Metric
    label: str | None = None
    output: str | None = None


@dataclass(slots=True)
class ChainMeasure:
    """Measures plans for `search.choose`. Keeps float outputs once, and one open session per form of a stage.

    Attributes:
        stage_graph: The float stages.
        io: The model's signature.
        table: The ranges that plans are applied with.
        samples: The search samples: neither calibration nor evaluation.
        scoring: The metric.
        seconds: How long one latency measurement takes, per stage.
    """

    stage_graph: StageGraph
    io: IOSpec
    table: CalibrationTable
    samples: Samples
    scoring: Scoring
    seconds: float = 0.5
    _open: dict[tuple[str, frozenset[str]], OpenStage] = field(default_factory=dict)
    _float: dict[str, np.ndarray] = field(default_factory=dict)
    _few: dict[str, np.ndarray] = field(default_factory=dict)

    def drop(self, plan: QuantPlan) -> float:
        """Returns how much worse the metric is than float over all search samples.

        Raises:
            DataError: The metric does not fit the outputs or labels.
            BackendError: ONNX Runtime fails in a stage.
        """
        scoring, name = self.scoring, choose_output(self.io, self.scoring.output)
        labels = collect_labels(self.samples, scoring.label) if scoring.label is not None else None
        if not self._float:
            self._float = self._outputs(None, self.samples)
        planned = self._outputs(plan, self.samples)
        before, after = (
            score(scoring.metric, outputs, name, labels=labels, reference=self._float)
            for outputs in (self._float, planned)
        )
        return scoring.metric.drop(before, after)

    def output_error(self, plan: QuantPlan) -> float:
        """Returns the largest difference from float, relative to the largest magnitude of each output.

        Over every element of every result output of the first `ERROR_SAMPLES` samples: a mean would hide the one
        sample that a recurrent model lost. Infinite when an output that is finite in float is not any more.

        Raises:
            BackendError: ONNX Runtime fails in a stage.
        """
        few = Subset(self.samples, tuple(range(min(ERROR_SAMPLES, len(self.samples)))))
        if not self._few:
            self._few = self._outputs(None, few)
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

    def latency(self, plan: QuantPlan, stages: Iterable[str]) -> Mapping[str, StageLatency]:
        """Returns median latencies at batch 1 on a real sample, float and planned interleaved.

        Raises:
            BackendError: ONNX Runtime fails in a stage.
        """
        _, feed = next(feeds(self.io, self.samples, 1))
        values = Chain(self.stage_graph, self.io, opened=self._sessions(None)).run(feed)
        floats, planned = self._sessions(None), self._sessions(plan)
        result = {}
        for stage in stages:
            inputs = {n: values[n] for n in floats[stage].inputs}
            calls = {"float": _call(floats[stage], inputs), "int8": _call(planned[stage], inputs)}
            found = measure(calls, seconds=self.seconds, warmup=5)
            result[stage] = StageLatency(found["float"].median * 1e3, found["int8"].median * 1e3)
        return result

    def _outputs(self, plan: QuantPlan | None, samples: Samples) -> dict[str, np.ndarray]:
        chain = Chain(self.stage_graph, self.io, opened=self._sessions(plan))

        def run(feed: Feed) -> Mapping[str, np.ndarray]:
            size = self.io.batch
            if not isinstance(size, int) or size == 1:
                return chain.run(feed)
            # A fixed batch takes no single sample: it is repeated, and the first result counts.
            filled = {n: np.repeat(v, size // len(v), axis=0) for n, v in feed.items()}
            return {n: v[: len(v) // size] for n, v in chain.run(filled).items() if v.ndim}

        return collect_outputs(run, self.io, samples, reset=chain.reset)

    def _sessions(self, plan: QuantPlan | None) -> dict[str, OpenStage]:
        return {stage.name: self._session(stage.name, plan) for stage in self.stage_graph.stages}

    def _session(self, name: str, plan: QuantPlan | None) -> OpenStage:
        decisions = plan.stage(name) if plan is not None else ()
        key = name, frozenset(d.node for d in decisions if d.precision == INT8)
        if key not in self._open:
            planned = [k for k in self._open if k[1]]
            if len(planned) >= OPEN_PLANNED:
                del self._open[planned[0]]
            stage = next(s for s in self.stage_graph.stages if s.name == name)
            model = apply_plan(stage, plan, self.table) if plan is not None and key[1] else stage.model
            self._open[key] = OpenStage.open(name, model)
        return self._open[key]


def _call(stage: OpenStage, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    names = list(stage.outputs)

    def call() -> object:
        return stage.session.run(names, inputs)

    return call
