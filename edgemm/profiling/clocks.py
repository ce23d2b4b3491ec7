"""What decides how fast the machine runs: governors, frequency limits, the power mode.

cpufreq and devfreq of the kernel; nvpmodel and jetson_clocks of Jetson Linux, of which the first leaves its mode
in /var/lib/nvpmodel/status, and the second makes the lowest frequency of every clock its highest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgemm.profiling.nvml import Nvml
from edgemm.profiling.report import Unavailable
from edgemm.profiling.sysfs import number, scaled, text

_GPUS = re.compile(r"gpu|gv11b|gp10b|ga10b|gb10b|gm20b|mali|panfrost", re.IGNORECASE)
_COMMAND_SECONDS = 5


def clocks_json(root: Path, gpu: Nvml | None = None) -> dict[str, Any]:
    """Returns `edgemm.profiling.report.Clocks`.

    Args:
        root: Folder that holds `sys`, `etc` and `var`.
        gpu: The GPU that the model runs on, or None.
    """
    cpu, graphics = _cpu(root), [*_devfreq(root), *([_nvml(gpu)] if gpu is not None else [])]
    return {
        "cpu": cpu or {"unavailable": "no cpufreq in /sys/devices/system/cpu"},
        "gpu": graphics or {"unavailable": "no GPU clock in /sys/class/devfreq, and no NVIDIA GPU in use"},
        "power_mode": _power_mode(root),
        "locked": _locked([*cpu, *graphics]),
        "turbo": _turbo(root),
    }


def _cpu(root: Path) -> list[dict[str, Any]]:
    base = root / "sys/devices/system/cpu"
    policies = sorted(base.glob("cpufreq/policy*"), key=lambda path: (len(path.name), path.name))
    cores = sorted(base.glob("cpu[0-9]*/cpufreq"), key=lambda path: (len(path.parent.name), path.parent.name))
    if policies:
        found = [(f"cpu {text(p / 'related_cpus') or p.name}", p) for p in policies]
    else:
        found = [(core.parent.name, core) for core in cores]
    return [
        {
            "name": name,
            "governor": text(folder / "scaling_governor"),
            "min_mhz": scaled(folder / "scaling_min_freq", 1e-3),
            "max_mhz": scaled(folder / "scaling_max_freq", 1e-3),
            "hardware_max_mhz": scaled(folder / "cpuinfo_max_freq", 1e-3),
            "now_mhz": scaled(folder / "scaling_cur_freq", 1e-3),
        }
        for name, folder in found
    ]


def _devfreq(root: Path) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        if not _GPUS.search(folder.name):
            continue
        known = [int(f) for f in (text(folder / "available_frequencies") or "").split() if f.isdigit()]
        found.append(
            {
                "name": folder.name,
                "governor": text(folder / "governor"),
                "min_mhz": scaled(folder / "min_freq", 1e-6),
                "max_mhz": scaled(folder / "max_freq", 1e-6),
                "hardware_max_mhz": max(known) * 1e-6 if known else None,
                "now_mhz": scaled(folder / "cur_freq", 1e-6),
            }
        )
    return found


def _nvml(gpu: Nvml) -> dict[str, Any]:
    nothing = dict.fromkeys(("governor", "min_mhz", "max_mhz"))
    return {"name": gpu.name, **nothing, "hardware_max_mhz": gpu.clock(highest=True), "now_mhz": gpu.clock()}


def _locked(clocks: list[dict[str, Any]]) -> bool | None:
    """Returns whether every clock with limits may have one frequency only; None where none shows its limits."""
    limits = [(c["min_mhz"], c["max_mhz"]) for c in clocks if None not in (c["min_mhz"], c["max_mhz"])]
    return all(low == high for low, high in limits) if limits else None


def _turbo(root: Path) -> bool | None:
    base = root / "sys/devices/system/cpu"
    off, on = number(base / "intel_pstate/no_turbo"), number(base / "cpufreq/boost")
    return not off if off is not None else bool(on) if on is not None else None


def _power_mode(root: Path) -> dict[str, str] | Unavailable:
    status = text(root / "var/lib/nvpmodel/status") or ""
    if match := re.search(r"pmode:(\d+)", status):
        number_of_mode = int(match[1])
        names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text(root / "etc/nvpmodel.conf") or ""))
        name = {int(key): value for key, value in names.items()}.get(number_of_mode, f"mode {number_of_mode}")
        return {"name": name, "source": "nvpmodel"}
    if root == Path("/") and (asked := _ask_nvpmodel()):
        return {"name": asked, "source": "nvpmodel -q"}
    if profile := text(root / "sys/firmware/acpi/platform_profile"):
        return {"name": profile, "source": "platform_profile"}
    return {"unavailable": "no nvpmodel (Jetson) and no /sys/firmware/acpi/platform_profile"}


def _ask_nvpmodel() -> str | None:
    """Returns what `nvpmodel -q` says, or None where there is no such command or it refuses."""
    command = shutil.which("nvpmodel")
    if command is None:
        return None
    try:
        done = subprocess.run(
            [command, "-q"], capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return match[1] if match else None
