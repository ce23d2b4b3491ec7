"""What each graph of a layout takes on each engine, float and integer: the ground on which plans are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgemm.pipeline.candidates import Layout
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.race import Track
from edgemm.rewrite.prepare import batchable

NONE = "float"
"""The form in which nothing is integer."""

CLOSE = 1.5
"""An engine that is slower than the best by more than this, in float or in an integer form, is tried no more."""

CALL_MS = 0.006
"""What one more engine costs a call outside of it."""

MARGIN = 1.03
"""Two latencies within this factor count as equal: then float is preferred, and one engine per stage."""

Accept = Callable[[EngineKind], bool]


def anything(kind: EngineKind) -> bool:
    """Accepts every engine, also one that rounds floats."""
    return True


def exact(kind: EngineKind) -> bool:
    """Accepts engines that keep float32 as it is."""
    return kind.exact


def onnxruntime(kind: EngineKind) -> bool:
    """Accepts ONNX Runtime, which every device with the `cpu` extra has."""
    return kind.backend == EngineKind().backend


@dataclass(slots=True)
class Lane:
    """Times of one graph of a layout.

    Attributes:
        float_ms: Latency of the float graph on ONNX Runtime.
        ratios: (form, engine) -> time over that.
    """

    float_ms: float
    ratios: dict[tuple[str, EngineKind], float] = field(default_factory=dict)

    def best(self, forms: Sequence[str], accept: Accept) -> tuple[str, EngineKind] | None:
        """Returns the fastest of `forms` with its engine, or None."""
        found = [(r, i, k) for i, (k, r) in enumerate(self.ratios.items()) if k[0] in forms and accept(k[1])]
        return min(found)[2] if found else None

    def ms(self, form: str, kind: EngineKind) -> float:
        """Returns the expected latency in milliseconds, infinite for what was not tried."""
        return self.float_ms * self.ratios.get((form, kind), math.inf)


@dataclass(frozen=True, slots=True)
class LineUp:
    """Times of one layout: graph name -> its lane."""

    layout: Layout
    lanes: Mapping[str, Lane]

    def __str__(self) -> str:
        parts = []
        for name, lane in self.lanes.items():
            best = lane.best([form for form, _ in lane.ratios], anything)
            if best is not None:
                parts.append(f"{name} {best[0]} on {best[1]}, {lane.ratios[best]:.2f} × float ONNX Runtime")
        return f"{self.layout.name}: {'; '.join(parts)}"

    def ms(self, forms: Sequence[str] | None = None) -> float:
        """Returns the expected latency of the model: every graph in its fastest form, of `forms`, and engine."""
        total = CALL_MS * (len(self.lanes) - 1)
        for lane in self.lanes.values():
            best = lane.best([form for form, _ in lane.ratios] if forms is None else forms, anything)
            total += lane.ms(*best) if best is not None else math.inf
        return total


def best_lineup(lineups: Sequence[LineUp]) -> LineUp:
    """Returns the layout with the fastest forms, the preferred one where it is no slower."""
    times = [lineup.ms() for lineup in lineups]
    best = min(times)
    return next((u for u, ms in zip(lineups, times, strict=True) if ms <= MARGIN * best), lineups[0])


def race_floats(layout: Layout, tracks: Mapping[str, Track], kinds: Sequence[EngineKind]) -> LineUp:
    """Returns the times of the float graphs on every engine; a lone engine has nothing to be compared with."""
    lanes = {}
    for stage in layout.stages:
        track = tracks[stage.name]
        own = [k for k in kinds if not k.batched or batchable(stage.model)]
        ratios = {}
        for kind in own:
            same = kind == EngineKind() or len(own) == 1
            if (ratio := 1.0 if same else track.ratio(stage.model, kind)) is not None:
                ratios[NONE, kind] = ratio
        lane = Lane(track.reference_ms(), ratios)
        track.close()
        lanes[stage.name] = lane
    return LineUp(layout, lanes)


Models = Callable[[str, str], ir.Model | None]
"""Makes the graph of (graph of the layout, form); None when the form has nothing integer there."""


def race_forms(
    lineup: LineUp,
    tracks: Mapping[str, Track],
    forms: Sequence[str],
    models: Models,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Adds the times of integer forms, on each engine that is not far behind, with one thread count each.

    The fastest is then tried with the other thread count as well.
    """
    total = len(lineup.lanes) * len(forms)
    for number, (name, lane) in enumerate(lineup.lanes.items()):
        floats = {kind: ratio for (form, kind), ratio in lane.ratios.items() if form == NONE}
        limit = CLOSE * min(floats.values(), default=0.0)
        tried: dict[tuple[str, str], EngineKind] = {}
        for kind, ratio in sorted(floats.items(), key=lambda item: item[1]):
            if ratio <= limit or onnxruntime(kind):
                tried.setdefault((kind.backend, kind.precision), kind)
        for at, form in enumerate(forms):
            if progress is not None:
                progress(number * len(forms) + at + 1, total)
            model = models(name, form)
            if model is None:
                continue
            for kind in list(tried.values()):
                if (found := tracks[name].ratio(model, kind)) is not None:
                    lane.ratios[form, kind] = found
            best_ratio = min(lane.ratios.values(), default=0.0)
            for key, kind in list(tried.items()):
                if lane.ratios.get((form, kind), 0.0) > CLOSE * best_ratio:
                    del tried[key]
        best = lane.best(forms, anything)
        model = models(name, best[0]) if best is not None else None
        for other in floats if best is not None and model is not None else ():
            assert best is not None
            assert model is not None
            same = (other.backend, other.precision) == (best[1].backend, best[1].precision)
            if same and other != best[1] and (found := tracks[name].ratio(model, other)) is not None:
                lane.ratios[best[0], other] = found
        tracks[name].close()
