"""Accuracy for every subset of the modalities and every fill: `report/modalities.json`, and a heat map of it.

A fill is a policy for a sensor that drops out; this says what it costs. It is measured on evaluation samples only.
"""

from __future__ import annotations

import io as files_io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgemm.data import Samples
from edgemm.errors import DataError
from edgemm.metrics import concatenate_rows, score
from edgemm.pipeline.json_file import json_file
from edgemm.pipeline.scoring import Scorer, score_float
from edgemm.quant.chain import fed, feeds
from edgemm.recipe.schema import EvaluateSection
from edgemm.runtime.cache import StageCache
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.heads import HEAD
from edgemm.runtime.stand_ins import STORED, Behind, Placed
from edgemm.runtime.stream_policy import inputs_of
from edgemm.tensors import Feed, IOSpec

JSON_FILE = "report/modalities.json"
PLOT_FILE = "report/modalities.svg"

ALL_SUBSETS = 4
"""Most modalities of which every subset is scored; of more, those that lack one or two."""

ZEROS = "zeros"


@dataclass(frozen=True, slots=True)
class Case:
    """Modalities that lack, and what goes in for them; both are empty in the complete case."""

    missing: tuple[str, ...]
    fill: str


def report_modalities(
    sessions: Mapping[str, FusionSession],
    samples: Samples,
    label: str | None,
    section: EvaluateSection,
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    """Returns the report as plain JSON values.

    Args:
        sessions: Name -> session with its stand-ins; the first is the float model.
        samples: Evaluation samples.
        label: Array of their labels; without it, results are compared with those of the complete float model.
        section: The metric, the output that counts, and samples per run.
        tell: Told how many runs over samples are done, of how many.

    Raises:
        DataError: The float model's score is no number, or the labels do not fit.
        BackendError: An engine fails.
    """
    first = next(iter(sessions.values()))
    scorer = score_float(first, samples, label, section)
    cases = {name: find_cases(session) for name, session in sessions.items()}
    done, total = 0, sum(map(len, cases.values())) * len(samples)
    scores: dict[Case, dict[str, float | None]] = {}
    for name, session in sessions.items():
        runner = _Runner(session, cases[name])
        for count in runner.run(samples, section.batch):
            done += count * len(cases[name])
            tell(done, total)
        for case in cases[name]:
            scores.setdefault(case, {})[name] = _score(scorer, runner.outputs(case))
    ordered = sorted(scores, key=lambda c: (len(c.missing), _place(first.io, c.missing), _order(c.fill)))
    return {
        "schema": 1,
        "metric": scorer.metric.name.rsplit("/", 1)[-1],
        "output": scorer.output,
        "percent": scorer.metric.percent,
        "higher_is_better": scorer.metric.higher_is_better,
        "compared_with": "labels" if scorer.metric.needs_labels else "the complete float model",
        "split": "evaluation",
        "samples": len(samples),
        "modalities": list(first.io.modality_names()),
        "sessions": list(sessions),
        "rows": [
            {
                "missing": list(case.missing),
                "fill": case.fill or None,
                "scores": {name: scores[case].get(name) for name in sessions},
            }
            for case in ordered
        ],
    }


def find_cases(session: FusionSession) -> tuple[Case, ...]:
    """Returns the complete case, and every subset that may lack with every fill that there is for all of it.

    Zeros can always be given; `"blank"` counts where it is something else.
    """
    io, stand_ins = session.io, session.stand_ins
    names = io.modality_names()
    most = len(names) if len(names) <= ALL_SUBSETS else 2
    cases = [Case((), "")]
    for size in range(1, most + 1):
        for missing in itertools.combinations(names, size):
            cases.append(Case(missing, ZEROS))
            for fill in STORED:
                placed = [stand_ins.find(m, fill) for m in missing]
                if all(p is not None for p in placed) and not all(map(_is_zeros, placed)):
                    cases.append(Case(missing, fill))
    for name, head in stand_ins.heads.items():
        missing = tuple(m for m in names if m not in head.entry.modalities)
        if missing and all(stand_ins.find(m, f"{HEAD}:{name}") is not None for m in missing):
            cases.append(Case(missing, f"{HEAD}:{name}"))
    return tuple(cases)


def report_files(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns path in the bundle -> bytes: the JSON file and the heat map."""
    return {JSON_FILE: json_file(report), PLOT_FILE: plot(report)}


def report_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the report for people."""
    rows = []
    for row in report["rows"]:
        missing = ", ".join(row["missing"]) or "nothing"
        values = [_shown(row["scores"][name], report["percent"]) for name in report["sessions"]]
        rows.append([missing, row["fill"] or "", *values])
    return ["missing", "fill", *report["sessions"]], rows


def plot(report: Mapping[str, Any]) -> bytes:
    """Returns the report as SVG: a row per subset, a column per fill and session, the complete case above."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    fills = list(dict.fromkeys(row["fill"] for row in report["rows"] if row["fill"]))
    columns = [(fill, name) for fill in fills for name in report["sessions"]]
    subsets = list(dict.fromkeys(tuple(row["missing"]) for row in report["rows"]))
    values = np.full((len(subsets), len(columns)), np.nan)
    for row in report["rows"]:
        for at, (fill, name) in enumerate(columns):
            value = row["scores"][name]
            if row["fill"] in (None, fill) and value is not None:
                values[subsets.index(tuple(row["missing"])), at] = value
    with rc_context({"svg.hashsalt": "edgemm", "svg.fonttype": "none"}):
        figure = Figure(figsize=(2.5 + 1.1 * len(columns), 1.6 + 0.45 * len(subsets)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        colors = "RdYlGn" if report["higher_is_better"] else "RdYlGn_r"
        mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colors, edgecolors="white", linewidth=2)
        for (line, at), value in np.ndenumerate(values):
            text = _shown(None if math.isnan(value) else value, report["percent"])
            axes.text(at + 0.5, line + 0.5, text, ha="center", va="center", fontsize=8)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [f"{fill}\n{name}" for fill, name in columns], fontsize=8)
        axes.set_yticks(np.arange(len(subsets)) + 0.5, [_without(s) for s in subsets], fontsize=8)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        figure.colorbar(mesh, ax=axes, label=f"{report['metric']} on {report['samples']:,} samples")
        out = files_io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


@dataclass(slots=True)
class _Lane:
    """A cache, and what was in it: samples of several cases may go through one, those of a stream may not."""

    cache: StageCache
    tokens: dict[str, str] = field(default_factory=dict)

    def changed(self, tokens: Mapping[str, str]) -> set[str]:
        """Returns the modalities that are not what they were, and remembers what they are."""
        changed = {m for m, token in tokens.items() if self.tokens.get(m) != token}
        self.tokens = dict(tokens)
        return changed


class _Runner:
    """Runs every case of one session over the samples; encoders run once where cases share what they read."""

    def __init__(self, session: FusionSession, cases: Sequence[Case]) -> None:
        self._session = session
        self._cases = cases
        if session.io.states:
            self._lanes = [_Lane(session.new_cache("marks")) for _ in cases]
        else:
            self._lanes = [_Lane(session.new_cache("marks"))] * len(cases)
        names = [o.name for o in session.io.result_outputs]
        self._parts: dict[Case, dict[str, list[np.ndarray]]] = {c: {n: [] for n in names} for c in cases}

    def run(self, samples: Samples, batch: int) -> Iterator[int]:
        """Runs everything; yields the number of samples after each few."""
        session = self._session
        for number, (rows, feed) in enumerate(feeds(session.io, samples, batch)):
            for case, lane in zip(self._cases, self._lanes, strict=True):
                values, behind = self._values(case, feed)
                tokens = {m: case.fill if m in case.missing else str(number) for m in session.io.modality_names()}
                outputs = session.run_cached(lane.cache, values, lane.changed(tokens), behind)
                for name, parts in self._parts[case].items():
                    parts.append(_rows(session.io, outputs[name], len(rows)))
            yield len(rows)

    def outputs(self, case: Case) -> dict[str, np.ndarray]:
        """Returns every result over all samples, first axis = sample."""
        return {name: concatenate_rows(parts) for name, parts in self._parts[case].items()}

    def _values(self, case: Case, feed: Feed) -> tuple[dict[str, np.ndarray], Behind]:
        """Returns the feed of a case, and the outputs of engines that do not run."""
        io = self._session.io
        count = fed(feed, io)
        values = dict(feed)
        behind: Behind = {}
        sizes = io.sizes(feed)
        for modality in case.missing:
            placed = self._session.stand_ins.find(modality, case.fill)
            if placed is None:
                values |= {i.name: np.zeros_like(feed[i.name]) for i in inputs_of(io, modality)}
                continue
            values |= placed.feed(io, modality, sizes, count)
            behind = {**behind, **placed.behind(io, count)}
        return values, behind


def _rows(io: IOSpec, value: np.ndarray, count: int) -> np.ndarray:
    rows: np.ndarray = np.asarray(value)
    alone = io.batch is None or rows.ndim == 0 or len(rows) < count
    return rows[None] if alone else rows[:count]


def _score(scorer: Scorer, outputs: Mapping[str, np.ndarray]) -> float | None:
    try:
        value = score(scorer.metric, outputs, scorer.output, labels=scorer.labels, reference=scorer.reference)
    except DataError:  # NaN, of a metric that has no value then
        return None
    return value if math.isfinite(value) else None


def _is_zeros(placed: Placed | None) -> bool:
    return placed is not None and not placed.engines and not any(np.any(row) for row in placed.inputs.values())


def _place(io: IOSpec, missing: tuple[str, ...]) -> tuple[int, ...]:
    names = io.modality_names()
    return tuple(names.index(m) for m in missing)


def _order(fill: str) -> int:
    known = ("", ZEROS, *STORED)
    return known.index(fill) if fill in known else len(known)


def _without(missing: tuple[str, ...]) -> str:
    return f"without {', '.join(missing)}" if missing else "complete"


def _shown(value: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if percent else f"{value:.4g}"
