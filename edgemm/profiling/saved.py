"""A measurement against a report that was saved earlier: not interleaved, so told apart from one that is.

The intervals of both hold what differs between the runs of one session, not what differs between sessions. So only
a large difference counts, and none where the two were not measured under the same conditions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgemm.errors import DataError
from edgemm.profiling.compare import stage_rows, verdict
from edgemm.runtime.latency import Ratio

THRESHOLD = 0.25
"""Practical threshold, relative: medians of one build on one machine differ by this much between sessions."""

_CONDITIONS = {
    "threads": "threads",
    "batch": "batch",
    "inputs": "inputs",
    "samples": "samples used",
    "of_samples": "samples in the data",
    "dims": "sizes of dynamic dimensions",
    "reset_every": "--reset-every",
}
"""Key of a report -> what it is called; where one differs, the times are of different work."""

_MACHINE = {
    "cpu": "processor",
    "arch": "architecture",
    "board": "board",
    "cores": "cores",
    "cpu_quota": "CPU limit of the container",
    "governor": "frequency governor",
}
"""Key of a report's machine -> what it is called; where one differs, the times are of different machines."""

_TOLD = {"memory_mb": "memory", "system": "system"}
"""Key of a report's machine -> what it is called; where one differs it is told, and the times are compared."""


def different_conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Returns why the times of two reports cannot be compared, one reason each; empty where they can.

    Args:
        a: The report of now.
        b: The saved one.
    """
    return [*_differing(_machines(a, b), _MACHINE, "the machines differ: "), *_differing((a, b), _CONDITIONS)]


def warnings_of_saved(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Returns what a reader of a comparison with a saved report must know.

    The first says what is always so. Then what both reports warn of, and what differs without making the times
    incomparable (`different_conditions` has what does).

    Args:
        a: The report of now.
        b: The saved one.
    """
    when = f" ({b['created']})" if "created" in b else ""
    return [
        f"B was measured at another time{when}, and one build can differ by {THRESHOLD:.0%} between sessions; "
        f"for a finer answer compare both files in one run: --compare {b['file']}",
        *(f"{side}: {text}" for side, report in (("A", a), ("B", b)) for text in report.get("warnings", ())),
        *_differing(_machines(a, b), _TOLD, "the machines differ: "),
        *_differing((a, b), {"backend_version": "version of the backend"}),
    ]


def _machines(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return a.get("machine", {}), b.get("machine", {})


def _differing(
    sides: tuple[Mapping[str, Any], Mapping[str, Any]], names: Mapping[str, str], place: str = ""
) -> list[str]:
    found = []
    for key, name in names.items():
        own, theirs = (side.get(key) for side in sides)
        if own != theirs and not (key == "inputs" and _same_path(own, theirs)):
            found.append(f"{place}{name}: A {_shown(own)}, B {_shown(theirs)}")
    return found


def _same_path(a: Any, b: Any) -> bool:
    """Returns whether both name the same data; `random` is a word, not a file."""
    return "random" not in (a, b) and os.path.abspath(str(a)) == os.path.abspath(str(b))


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)


def interval_ratio(a: Mapping[str, Any], b: Mapping[str, Any]) -> Ratio | None:
    """Returns the median of `a` over that of `b` from their 95 % intervals; None where one has no interval.

    The interval of the ratio is that of the difference of the logarithms by MOVER, the method of variance
    estimates recovery (Zou, Donner: Construction of confidence limits about effect measures: a general approach,
    Statistics in Medicine 27, 2008).

    Args:
        a: `edgemm.profiling.report.Times`.
        b: The same.
    """
    intervals = [times.get("intervals", {}).get("p50") for times in (a, b)]
    medians = [times["p50_ms"] for times in (a, b)]
    if None in intervals or min(*medians, intervals[0][0], intervals[1][0]) <= 0:
        return None
    (own, own_low, own_high), (other, other_low, other_high) = (
        (math.log(median), math.log(low), math.log(high))
        for median, (low, high) in zip(medians, intervals, strict=True)
    )
    middle = own - other
    low = middle - math.hypot(own - own_low, other_high - other)
    high = middle + math.hypot(own_high - own, other - other_low)
    return Ratio(math.exp(middle), math.exp(low), math.exp(high), paired=False)


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Ratio, list[dict[str, Any]]]:
    """Returns the ratio of whole calls, and one row per engine as `edgemm.profiling.compare.compare_stages`.

    The threshold of the verdicts is `THRESHOLD`; rows have none where `different_conditions` has reasons.

    Raises:
        DataError: A report has no interval of its median.
    """
    found = interval_ratio(a["end_to_end"], b["end_to_end"])
    if found is None:
        short = min((a, b), key=lambda report: int(report["end_to_end"]["runs"]))
        raise DataError(
            f"{short['file']}: {short['end_to_end']['runs']} runs are too few for an interval of the median.",
            hint="measure 6 runs or more; some hundred tell small differences",
        )
    mine, theirs = ({entry["name"]: entry for entry in report["stages"]} for report in (a, b))
    first, second = ([(name, e["stages"], e["p50_ms"]) for name, e in side.items()] for side in (mine, theirs))
    judge = None if different_conditions(a, b) else partial(verdict, threshold=THRESHOLD)
    return found, stage_rows(first, second, lambda own, other: interval_ratio(mine[own], theirs[other]), judge)


def compare_layers(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per module of the original model, or per layer where that is not known.

    `{name, op, stage, a_p50_ms, b_p50_ms, difference_ms}`. Two builds of a model have other layers, but the same
    modules: what the layers of a module take is added up. There is no interval, and so no verdict.

    Args:
        a: `edgemm.profiling.report.Layer` each.
        b: The same.
    """
    sums = [_by_module(layers) for layers in (a, b)]
    rows = []
    for key in dict.fromkeys([*sums[0], *sums[1]]):
        own, other = (side.get(key) for side in sums)
        known = own or other
        assert known is not None
        row: dict[str, Any] = {"name": key[1], "op": ", ".join(known[1]), "stage": key[0]}
        row |= {"a_p50_ms": own and own[0], "b_p50_ms": other and other[0]}
        rows.append(row | ({"difference_ms": own[0] - other[0]} if own and other else {}))
    return rows


def _by_module(layers: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[float, tuple[str, ...]]]:
    """Returns (stage, module or layer) -> its time in ms, and its operators."""
    found: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}
    for layer in layers:
        key = (layer["stage"], layer.get("module") or layer["name"])
        before, ops = found.get(key, (0.0, ()))
        found[key] = (before + layer["p50_ms"], tuple(dict.fromkeys([*ops, layer["op"]])))
    return found
