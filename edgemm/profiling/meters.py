"""Meters of energy: RAPL counters of a processor, and the INA3221 power monitor of a Jetson.

RAPL: /sys/class/powercap (Documentation/power/powercap). Root alone may read it on most systems (CVE-2020-8694).
INA3221: /sys/class/hwmon (Documentation/hwmon/ina3221), on JetPack 4 its IIO driver. The rails are those of the
Jetson Linux Developer Guide, "Power and Performance".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from edgemm.profiling.sysfs import number, scaled, text

WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails of a Jetson that feed all others."""

INSIDE_OTHERS = ("VDDQ_VDD2_1V8AO", "NC")
"""Rails that are fed by another one that is measured, and channels without a rail."""


class Meter(Protocol):
    """What energy is read from.

    Attributes:
        name: For people, for example `"RAPL package-0"`.
        covers: What its energy is that of.
    """

    name: str
    covers: str

    def joules(self) -> float | None:
        """Returns the energy since some time, of a meter that counts it; None of one that knows only power."""
        ...

    def watts(self) -> float | None:
        """Returns the power now, of a meter that knows it; None of one that counts energy, or if reading fails."""
        ...


class Rapl:
    """A RAPL domain. Its counter begins again at `max_energy_range_uj`: it has to be read more often than that."""

    def __init__(self, zone: Path) -> None:
        """Reads the domain in the folder `zone`."""
        domain = text(zone / "name") or zone.name
        self.name = f"RAPL {domain}"
        self.covers = "memory" if domain == "dram" else "processor"
        self._file = zone / "energy_uj"
        self._range = number(zone / "max_energy_range_uj") or 0
        self._last = number(self._file) or 0
        self._sum = 0

    def joules(self) -> float:
        """Returns the energy since this object was made; what a failed reading lacks is in the next one."""
        now = number(self._file)
        if now is not None:
            self._sum += now - self._last if now >= self._last else now + self._range - self._last
            self._last = now
        return self._sum * 1e-6

    def watts(self) -> None:
        """Returns None."""


class Ina3221:
    """The rails of a Jetson that make up the whole of what is measured."""

    def __init__(self, rails: Mapping[str, Callable[[], float | None]]) -> None:
        """Adds up `rails`: name -> how to read its power in watts."""
        whole = [name for name in WHOLE_BOARD if name in rails][:1]
        used = whole or [name for name in rails if name not in INSIDE_OTHERS]
        self._rails = [rails[name] for name in used]
        self.name = f"INA3221 {' + '.join(used)}"
        self.covers = "board" if whole else "module"

    def joules(self) -> None:
        """Returns None."""

    def watts(self) -> float | None:
        """Returns the sum of the rails, or None when one could not be read."""
        values = [read() for read in self._rails]
        return None if None in values else sum(value for value in values if value is not None)


def find_rapl(root: Path) -> tuple[list[Meter], str]:
    """Returns the packages and their memory (or the platform as a whole), and why there are none."""
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
    if not zones:
        return [], "no RAPL in /sys/class/powercap"
    named = [(text(zone / "name") or "", zone) for zone in zones]
    wanted = [zone for name, zone in named if re.fullmatch(r"package-\d+|dram", name)]
    wanted = wanted or [zone for name, zone in named if name == "psys"]
    if not wanted:
        return [], "RAPL has no domain of a whole processor"
    unread = [zone for zone in wanted if number(zone / "energy_uj") is None]
    if unread:
        return [], f"RAPL: /sys/class/powercap/{unread[0].name}/energy_uj cannot be read (root alone may)"
    return [Rapl(zone) for zone in wanted], ""


def find_ina3221(root: Path) -> tuple[list[Meter], str]:
    """Returns the power monitor of a Jetson, and why there is none."""
    rails: dict[str, Callable[[], float | None]] = {}
    for device in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if text(device / "name") == "ina3221":
            rails.update(_hwmon_rails(device))
    for device in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        rails.update(_iio_rails(device))
    there = {name: read for name, read in rails.items() if read() is not None}
    if there:
        return [Ina3221(there)], ""
    return [], "no INA3221" if not rails else "the INA3221 has no channel that can be read"


def _hwmon_rails(device: Path) -> dict[str, Callable[[], float | None]]:
    def reader(channel: int) -> Callable[[], float | None]:
        def watts() -> float | None:
            millivolts = scaled(device / f"in{channel}_input", 1e-3)
            milliamperes = scaled(device / f"curr{channel}_input", 1e-3)
            return None if millivolts is None or milliamperes is None else millivolts * milliamperes

        return watts

    return {text(device / f"in{n}_label") or f"{device.name} channel {n}": reader(n) for n in (1, 2, 3)}


def _iio_rails(device: Path) -> dict[str, Callable[[], float | None]]:
    def reader(channel: int) -> Callable[[], float | None]:
        return lambda: scaled(device / f"in_power{channel}_input", 1e-3)

    names = {n: text(device / f"rail_name_{n}") for n in (0, 1, 2)}
    return {name: reader(n) for n, name in names.items() if name is not None}
