"""When a comparison fails, as text: `slower>5%,memory>10%,drop>0.5%`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemm.errors import DataError, did_you_mean

UNITS: dict[str, Mapping[str, float]] = {
    "slower": {"%": 0.01},
    "memory": {"%": 0.01},
    "drop": {"%": 0.01, "": 1.0},
}
"""What may fail a comparison -> unit -> its factor. `slower` and `memory` are relative to B."""

_FORM = re.compile(r"(?P<name>[a-z][a-z-]*)\s*>\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[A-Za-z%]*)")
_EXAMPLE = "for example --fail-if 'slower>5%', or 'slower>5%,memory>10%,drop>0.5%'"


@dataclass(frozen=True, slots=True)
class Condition:
    """What makes a comparison fail.

    Attributes:
        text: As it was given.
        name: A key of `UNITS`.
        more: The share, or the metric's value, from which on it fails.
    """

    text: str
    name: str
    more: float


def parse_conditions(text: str) -> tuple[Condition, ...]:
    """Returns the conditions in `NAME>NUMBER%`, several separated by commas.

    Raises:
        DataError: It is not of this form, or names something that no comparison has.
    """
    return tuple(_condition(part.strip(), text) for part in text.split(","))


def _condition(part: str, text: str) -> Condition:
    found = _FORM.fullmatch(part)
    if found is None:
        raise DataError(f"--fail-if '{text}': '{part}' is not of the form NAME>NUMBER%.", hint=_EXAMPLE)
    name, unit = found["name"], found["unit"]
    if name not in UNITS:
        raise DataError(
            f"--fail-if '{text}': nothing is called '{name}' (there are: {', '.join(UNITS)}).",
            hint=did_you_mean(name, UNITS, _EXAMPLE),
        )
    if unit not in UNITS[name]:
        got = f"the unit '{unit}'" if unit else "no unit"
        raise DataError(f"--fail-if '{text}': '{part}': {name} is given in %, got {got}.", hint=_EXAMPLE)
    return Condition(part, name, float(found["number"]) * UNITS[name][unit])


def check_conditions(conditions: Sequence[Condition], comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns `{condition, fails, why}` for each; what was not measured fails.

    `slower>X` fails when A is slower by more than X and the 95 % interval of the ratio excludes 1. Against a saved
    report A must be slower by the comparison's threshold, too, and it fails where there is no verdict.
    """
    return [_checked(condition, comparison) for condition in conditions]


def describe_drop(accuracy: Mapping[str, Any]) -> str:
    """Returns how A's score stands to B's: `A gains 6.25 points`, of a metric in percent, else its difference.

    Args:
        accuracy: `{metric, percent, drop}`; `drop` is positive where A is worse, None where it is no number.
    """
    drop = accuracy["drop"]
    if drop is None:
        return "the difference is no number"
    if drop == 0:
        return "no difference"
    if accuracy["percent"]:
        return f"A {'loses' if drop > 0 else 'gains'} {abs(drop) * 100:.4g} points"
    return f"A is {'worse' if drop > 0 else 'better'} by {abs(drop):.4g}"


def _slower(more: float, comparison: Mapping[str, Any]) -> tuple[bool, str]:
    """Returns whether A is slower by more than that, and why."""
    if comparison["no_verdict"]:
        return True, f"not compared: {'; '.join(comparison['no_verdict'])}"
    found = comparison["ratio"]
    why = f"A takes {found['value'] - 1:+.1%} ({found['low'] - 1:+.1%} to {found['high'] - 1:+.1%})"
    if not comparison["interleaved"] and more < comparison["threshold"]:
        more = comparison["threshold"]
        why += f"; against a saved report only more than {more:.0%} counts"
    return found["value"] > 1 + more and found["low"] > 1, why


def _checked(condition: Condition, comparison: Mapping[str, Any]) -> dict[str, Any]:
    more = condition.more
    if condition.name == "slower":
        fails, why = _slower(more, comparison)
    elif condition.name == "memory":
        memory = comparison["memory"]
        if "unavailable" in memory:
            fails, why = True, f"memory unavailable: {memory['unavailable']}"
        else:
            change = memory["a_mb"] / memory["b_mb"] - 1
            fails, why = change > more, f"A holds {change:+.1%}"
    else:
        accuracy = comparison.get("accuracy")
        if accuracy is None or accuracy["drop"] is None:
            fails, why = True, "accuracy was not measured, or is no number"
        else:
            fails, why = accuracy["drop"] > more, f"{accuracy['metric']}: {describe_drop(accuracy)}"
    return {"condition": condition.text, "fails": fails, "why": why}
