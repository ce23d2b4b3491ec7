"""What a measurement must keep to, as text: `p99<30ms,memory<500MB,energy<5mJ`, and whether it does.

A limit is kept only when the report says so: a percentile that needs more runs, or an energy that no meter has
counted, keeps nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemm.errors import DataError, did_you_mean
from edgemm.profiling.report import BACK_TO_BACK, CACHED, PACED
from edgemm.runtime.latency import PERCENTILES

_TIME = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_MEMORY = {"kB": 2.0**-10, "KB": 2.0**-10, "MB": 1.0, "GB": 2.0**10, "KiB": 2.0**-10, "MiB": 1.0, "GiB": 2.0**10}
_ENERGY = {"uJ": 1e-3, "µJ": 1e-3, "μJ": 1e-3, "mJ": 1.0, "J": 1e3}
_SHARE = {"%": 0.01}

UNITS: dict[str, Mapping[str, float]] = {
    **{f"p{p:g}": _TIME for p in PERCENTILES},
    **dict.fromkeys(("mean", "max", "first-call", "load", "cold-start"), _TIME),
    "memory": _MEMORY,
    "energy": _ENERGY,
    "missed": _SHARE,
}
"""What may be limited -> unit -> its factor to that of the report (ms, MB, mJ, share)."""

_MODES = (BACK_TO_BACK, PACED, CACHED)
_OF_A_MODE = frozenset([*(f"p{p:g}" for p in PERCENTILES), "mean", "max", "missed"])
_FORM = re.compile(
    r"(?:(?P<mode>[a-z][a-z-]*)\.)?(?P<name>[a-z][a-z0-9.-]*)\s*(?P<sign><=|<)\s*(?P<number>\d+\.?\d*|\.\d+)\s*"
    r"(?P<unit>[A-Za-zµμ%]*)"
)
_EXAMPLE = "for example --budget 'p99<30ms,memory<500MB,energy<5mJ', or 'paced.p99<33ms,paced.missed<1%'"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a budget.

    Attributes:
        text: As it was given.
        mode: The mode whose times are meant; None is `end_to_end`.
        name: What is limited, a key of `UNITS`.
        most: The limit in the report's unit: ms, MB (2^20 bytes), mJ, or a share.
        inclusive: Whether the limit itself is allowed (`<=`).
        unit: As it was given.
    """

    text: str
    mode: str | None
    name: str
    most: float
    inclusive: bool
    unit: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A limit held against a report.

    Attributes:
        limit: The limit.
        got: The value in the report's unit, or None where it has none.
        kept: Whether it is below the limit; never without a value.
        why: Why there is no value, else empty.
    """

    limit: Limit
    got: float | None
    kept: bool
    why: str = ""

    @property
    def got_text(self) -> str:
        """The value in the unit of the limit, or why there is none."""
        if self.got is None:
            return self.why
        return f"{self.got / UNITS[self.limit.name][self.limit.unit]:.4g} {self.limit.unit}"

    def to_json(self) -> dict[str, Any]:
        """Returns `{limit, got, unit, kept, why}`; `got` is in the unit of the limit."""
        factor = UNITS[self.limit.name][self.limit.unit]
        return {
            "limit": self.limit.text,
            "got": None if self.got is None else self.got / factor,
            "unit": self.limit.unit,
            "kept": self.kept,
            "why": self.why or None,
        }


def parse_budget(text: str) -> tuple[Limit, ...]:
    """Returns the limits of a budget: `[MODE.]NAME<NUMBER UNIT`, several separated by commas.

    Raises:
        DataError: It is not of this form, or names something that no report has.
    """
    parts = [part.strip() for part in text.split(",")]
    return tuple(_limit(part, text) for part in parts)


def _limit(part: str, text: str) -> Limit:
    found = _FORM.fullmatch(part)
    if found is None:
        raise DataError(f"--budget '{text}': '{part}' is not of the form NAME<NUMBER UNIT.", hint=_EXAMPLE)
    mode, name, unit = found["mode"], found["name"], found["unit"]
    if name not in UNITS:
        raise DataError(
            f"--budget '{text}': nothing is called '{name}' (there are: {', '.join(UNITS)}).",
            hint=did_you_mean(name, UNITS, _EXAMPLE),
        )
    if mode is not None and mode not in _MODES:
        raise DataError(
            f"--budget '{text}': there is no mode '{mode}' (modes: {', '.join(_MODES)}).",
            hint=did_you_mean(mode, _MODES, _EXAMPLE),
        )
    if (mode is not None and name not in _OF_A_MODE) or (name == "missed" and mode != PACED):
        where = f"write {PACED}.missed: only paced runs have deadlines" if name == "missed" else f"write {name}"
        raise DataError(f"--budget '{text}': '{part}': {name} is not a figure of that mode.", hint=where)
    if unit not in UNITS[name]:
        units = ", ".join(dict.fromkeys(UNITS[name]))
        raise DataError(
            f"--budget '{text}': '{part}': {name} has no unit '{unit}' (units: {units})."
            if unit
            else f"--budget '{text}': '{part}' has no unit (units: {units}).",
            hint=_EXAMPLE,
        )
    most = float(found["number"]) * UNITS[name][unit]
    return Limit(part, mode, name, most, found["sign"] == "<=", unit)


def check_budget(limits: Sequence[Limit], report: Mapping[str, Any]) -> tuple[Outcome, ...]:
    """Returns every limit held against a latency report."""
    outcomes = []
    for limit in limits:
        got, why = _value(limit, report)
        kept = got is not None and (got < limit.most or (limit.inclusive and got == limit.most))
        outcomes.append(Outcome(limit, got, kept, why))
    return tuple(outcomes)


def _value(limit: Limit, report: Mapping[str, Any]) -> tuple[float | None, str]:
    """Returns what the report has for a limit, or None and why it has nothing."""
    if limit.name in _OF_A_MODE:
        return _of_mode(limit, report)
    if limit.name == "energy":
        energy = report.get("resources", {}).get("energy", {"unavailable": "not measured"})
        return energy.get("per_inference_mj"), str(energy.get("unavailable", ""))
    key = "peak_memory_mb" if limit.name == "memory" else f"{limit.name.replace('-', '_')}_ms"
    value = report.get(key)
    return value, "" if value is not None else "not measured"


def _of_mode(limit: Limit, report: Mapping[str, Any]) -> tuple[float | None, str]:
    times: Mapping[str, Any] = report["end_to_end"]
    if limit.mode is not None:
        mode = next((m for m in report.get("modes", ()) if m["mode"] == limit.mode), None)
        if mode is None:
            option = "--rate" if limit.mode == PACED else f"the mode {limit.mode}"
            return None, f"not measured: ask for {option}"
        if limit.name == "missed":
            return (mode["missed"] / mode["deadlines"], "") if mode["deadlines"] else (None, "no deadlines")
        times = mode["times"]
    value = times.get(f"{limit.name.replace('.', '_')}_ms")
    if value is not None:
        return float(value), ""
    needs = times.get("needs", {}).get(limit.name)
    return None, f"needs {needs:,} runs, got {times['runs']:,}" if needs else "not measured"
