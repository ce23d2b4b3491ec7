"""How warm the machine is, and whether it slowed itself down: thermal zones, counters, cooling devices.

Files of the kernel (Documentation/driver-api/thermal/sysfs-api, Documentation/hwmon/coretemp; for a Jetson the
Jetson Linux Developer Guide, "Thermal Management" and "Over-Current Throttling").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.profiling.nvml import Nvml
from edgemm.profiling.report import Unavailable
from edgemm.profiling.sysfs import number, scaled, text

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_POSSIBLE = (-40.0, 150.0)
_SLOWS = re.compile(r"processor|cpu|gpu|devfreq|powerclamp", re.IGNORECASE)
_NO_SLOWING = re.compile(r"fan|alert", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Thermal:
    """One look at the machine.

    Attributes:
        zones: Name -> degrees Celsius.
        counters: What counts throttling -> events so far.
        cooling: Cooling device that slows something down -> its state; 0 is off.
        gpu: Why the GPU runs below its clocks; None where nobody says.
    """

    zones: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    cooling: Mapping[str, int] = field(default_factory=dict)
    gpu: tuple[str, ...] | None = None


def look(root: Path, gpu: Nvml | None = None) -> Thermal:
    """Returns what can be read now.

    Args:
        root: Folder that holds `sys`.
        gpu: The GPU that the model runs on, or None.
    """
    zones = _zones(root) or _sensors(root)
    if gpu is not None and (warm := gpu.temperature()) is not None:
        zones[gpu.name] = warm
    return Thermal(zones, _counters(root), _cooling(root), gpu.slowed() if gpu is not None else None)


def temperature_json(before: Thermal, after: Thermal) -> dict[str, Any] | Unavailable:
    """Returns `edgemm.profiling.report.Temperature` of the zones that were read both times."""
    both = {name: (before.zones[name], warm) for name, warm in after.zones.items() if name in before.zones}
    zones = [{"name": name, "before_c": cold, "after_c": warm} for name, (cold, warm) in both.items()]
    if not zones:
        return {"unavailable": "no thermal zone and no temperature sensor of the processor in /sys"}
    return {"zones": zones, "hottest_c": max(map(max, both.values()))}


def throttling_json(before: Thermal, after: Thermal) -> dict[str, Any] | Unavailable:
    """Returns `edgemm.profiling.report.Throttling`: counters that rose, cooling that is on after the runs."""
    watched = [*after.counters, *after.cooling, *(["GPU"] if after.gpu is not None else [])]
    if not watched:
        return {"unavailable": "the kernel shows no throttle counter and no cooling device"}
    because = [
        f"{name} rose by {rise}"
        for name, count in after.counters.items()
        if (rise := count - before.counters.get(name, count)) > 0
    ]
    because += [
        f"cooling device {name} is on (state {state})" for name, state in after.cooling.items() if state > 0
    ]
    because += [f"the GPU runs below its clocks because of {reason}" for reason in after.gpu or ()]
    return {"throttled": bool(because), "because": because, "watched": watched}


def _zones(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in _by_number(root, "sys/class/thermal/thermal_zone*"):
        name = text(zone / "type") or zone.name
        _add(found, name if name not in found else f"{name} ({zone.name})", scaled(zone / "temp", 1e-3))
    return found


def _sensors(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for device in _by_number(root, "sys/class/hwmon/hwmon*"):
        driver = text(device / "name")
        if driver in _CPU_SENSORS:
            for file in sorted(device.glob("temp*_input")):
                label = text(file.with_name(file.name.replace("_input", "_label"))) or file.name.split("_")[0]
                _add(found, f"{driver} {label}", scaled(file, 1e-3))
    return found


def _add(found: dict[str, float], name: str, warm: float | None) -> None:
    """Adds a temperature that can be one: a sensor that is off says anything."""
    if warm is not None and _POSSIBLE[0] <= warm <= _POSSIBLE[1]:
        found[name] = warm


def _counters(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind in ("core", "package"):
        files = root.glob(f"sys/devices/system/cpu/cpu*/thermal_throttle/{kind}_throttle_count")
        counts = [count for file in files if (count := number(file)) is not None]
        if counts:
            found[f"{kind}_throttle_count"] = sum(counts) if kind == "core" else max(counts)
    for file in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):
        if (count := number(file)) is not None:
            found[file.name] = count
    return found


def _cooling(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for device in _by_number(root, "sys/class/thermal/cooling_device*"):
        kind, state = text(device / "type"), number(device / "cur_state")
        if kind is not None and state is not None and _SLOWS.search(kind) and not _NO_SLOWING.search(kind):
            found[kind if kind not in found else f"{kind} ({device.name})"] = state
    return found


def _by_number(root: Path, pattern: str) -> list[Path]:
    """Returns the folders of a pattern in the order of the number that each ends in."""
    return sorted(root.glob(pattern), key=lambda path: (len(path.name), path.name))
