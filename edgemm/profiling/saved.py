"""A measurement against a report that was saved earlier: not interleaved, so told apart from one that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgemm.errors import DataError
from edgemm.profiling.compare import stage_rows
from edgemm.runtime.latency import Ratio

_CONDITIONS = {
    "backend_version": "version of the backend",
    "threads": "threads",
    "batch": "batch",
    "inputs": "inputs",
    "dims": "sizes of dynamic dimensions",
    "reset_every": "--reset-every",
}
"""Key of a report -> what it is called; a difference is one between the conditions."""

_MACHINE = {
    "cpu": "processor",
    "arch": "architecture",
    "board": "board",
    "cores": "cores",
    "cpu_quota": "CPU limit of the container",
    "governor": "frequency governor",
    "memory_mb": "memory",
    "system": "system",
}


def differing_conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Returns what is not the same in two reports, one warning each; the first says what is always so.

    Args:
        a: The report of now.
        b: The saved one.
    """
    when = f" ({b['created']})" if "created" in b else ""
    found = [f"B was measured at another time{when}: a difference may be the machine's, and not the model's"]
    machines = [report.get("machine", {}) for report in (a, b)]
    for keys, sides, place in ((_MACHINE, machines, "the machines differ: "), (_CONDITIONS, [a, b], "")):
        for key, name in keys.items():
            own, theirs = (side.get(key) for side in sides)
            if own != theirs:
                found.append(f"{place}{name}: A {_shown(own)}, B {_shown(theirs)}")
    return found


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
    return found, stage_rows(first, second, lambda own, other: interval_ratio(mine[own], theirs[other]))


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
