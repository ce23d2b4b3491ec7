"""The search's questions about a layout on this machine: accuracy, and latency on the engine that would ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgemm.graph import size
from edgemm.pipeline.candidates import WHOLE, Layout, as_whole
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.race import Track
from edgemm.quant.apply import apply_plan
from edgemm.quant.cache import key_of
from edgemm.quant.measure import ChainMeasure, form_key
from edgemm.quant.plan import QuantPlan
from edgemm.quant.search import Accuracy


@dataclass(slots=True)
class Judge:
    """Answers `quant.search.Measure`.

    Attributes:
        accuracies: Accuracy and output error.
        layout: The layout that is searched.
        tracks: Its graphs, by name.
        kinds: The engine of each graph's integer form, by name.
        machine: What a latency depends on besides the graph, for the kept results.
    """

    accuracies: ChainMeasure
    layout: Layout
    tracks: Mapping[str, Track]
    kinds: Mapping[str, EngineKind]
    machine: str

    def accuracy(self, plan: QuantPlan) -> Accuracy:
        """Returns the drops on the search samples."""
        return self.accuracies.accuracy(plan)

    def output_error(self, plan: QuantPlan) -> float:
        """Returns the largest difference from float on a few samples."""
        return self.accuracies.output_error(plan)

    def milliseconds(self, plan: QuantPlan, other: QuantPlan, stage: str) -> tuple[float, float]:
        """Returns the latency of the engine that has `stage`, under both plans, interleaved."""
        graph = self.layout.graph_of(stage).name
        forms = [key_of(self._keys(p, graph)) for p in (plan, other)]
        key = key_of("ms", self.machine, graph, forms, str(self.kinds[graph]), self.accuracies.context())
        known = self.accuracies.results.get(key)
        if known is None:
            models = self.model(plan, graph), self.model(other, graph)
            known = self.tracks[graph].milliseconds(*models, self.kinds[graph])
            self.accuracies.results.put(key, known)
        return known[0], known[1]

    def model(self, plan: QuantPlan, graph: str) -> ir.Model:
        """Returns one graph of the layout under `plan`."""
        table = self.accuracies.table
        if graph == WHOLE:
            plan, table = as_whole(plan, table)
        stage = next(s for s in self.layout.stages if s.name == graph)
        return apply_plan(stage, plan, table) if form_key(plan.stage(graph)) else stage.model

    def integer(self, plan: QuantPlan, graph: str) -> bool:
        """Returns whether `plan` has anything integer in one graph of the layout."""
        return any(self._keys(plan, graph))

    def _keys(self, plan: QuantPlan, graph: str) -> list[str]:
        return [form_key(plan.stage(name)) for name in self.layout.covered_by(graph)]


class SizeJudge(Judge):
    """Answers with megabytes of engine files instead of milliseconds: for `--objective size`."""

    __slots__ = ()

    def milliseconds(self, plan: QuantPlan, other: QuantPlan, stage: str) -> tuple[float, float]:
        """Returns the sizes of the graph that has `stage` under both plans, in MB."""
        graph = self.layout.graph_of(stage).name
        return self._megabytes(plan, graph), self._megabytes(other, graph)

    def total(self, plan: QuantPlan) -> float:
        """Returns the size of the model under `plan` in MB."""
        return sum(self._megabytes(plan, stage.name) for stage in self.layout.stages)

    def _megabytes(self, plan: QuantPlan, graph: str) -> float:
        return size(self.model(plan, graph)) / 1e6
