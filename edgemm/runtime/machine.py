"""What the machine is: a latency means nothing without the CPU, its governor and its cores. Device side.

Everything is read from files below a root folder, so that tests can describe a board that is not there.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
}
"""Linux feature flag -> usual name, for the features that decide which kernels onnxruntime uses."""

INT8_FEATURES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Flags of the instructions that multiply and add int8; without one of them int8 rarely beats float."""

# Implementer and part numbers of /proc/cpuinfo; Arm kernels give no model name.
_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x004): "Carmel",
}

# L4T release -> JetPack family, where no nvidia-jetpack package names the exact version.
_JETPACKS = {32: "4.x", 34: "5.0", 35: "5.1", 36: "6.x", 38: "7.0 or 7.1", 39: "7.2 or later"}


@dataclass(frozen=True, slots=True)
class Jetson:
    """An NVIDIA Jetson board.

    Attributes:
        model: The board's name from its device tree.
        l4t: Jetson Linux release, for example `"36.4.3"`, or None where the file is missing (containers).
        jetpack: Exact version where the `nvidia-jetpack` package is installed, else the family, or None.
    """

    model: str
    l4t: str | None
    jetpack: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that a measurement was made on.

    Attributes:
        cpu: Model name of the processor.
        arch: Machine architecture, for example `"x86_64"` or `"aarch64"`.
        board: Name in the device tree (single-board computers), or None.
        cores: Logical cores that this process may use.
        cpu_quota: CPU time limit of the container in cores, or None without a limit.
        features: Flags of `CPU_FEATURES` that the processor has.
        governor: Frequency governor of every core (`"performance"`), or None where the kernel shows none.
        memory_mb: Physical memory in MiB, or None when unknown.
        system: Operating system and kernel.
        jetson: Set on an NVIDIA Jetson.
    """

    cpu: str
    arch: str
    board: str | None
    cores: int
    cpu_quota: float | None
    features: tuple[str, ...]
    governor: str | None
    memory_mb: int | None
    system: str
    jetson: Jetson | None

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether the processor multiplies int8 faster than float."""
        return bool(INT8_FEATURES & set(self.features))

    def summary(self) -> str:
        """Returns one line: processor, the features that decide about int8, cores, governor."""
        telling = [CPU_FEATURES[f] for f in self.features if f in INT8_FEATURES]
        features = f" ({', '.join(telling)})" if telling else ""
        cores = f"{self.cores} core{'' if self.cores == 1 else 's'}"
        if self.cpu_quota is not None:
            cores += f", limited to {self.cpu_quota:g}"
        board = f"{self.board} · " if self.board else ""
        return f"{board}{self.cpu}{features} · {cores} · governor {self.governor or 'not shown'}"

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict for manifests and reports."""
        return asdict(self) | {"features": list(self.features)}


def describe_machine(root: Path = Path("/")) -> Machine:
    """Returns what is known about this machine.

    Args:
        root: Folder that holds `proc`, `sys`, `etc` and `var`; another one than `/` describes that tree.
    """
    here = root == Path("/")
    cpuinfo = _cpuinfo(root)
    board = _text(root / "proc/device-tree/model").rstrip("\0").strip() or None
    return Machine(
        cpu=_cpu_name(cpuinfo) or (platform.processor() if here else "") or "unknown processor",
        arch=platform.machine(),
        board=board,
        cores=usable_cores() if here else len(cpuinfo),
        cpu_quota=_cpu_quota(root),
        features=_features(cpuinfo),
        governor=_governor(root),
        memory_mb=_memory_mb(root),
        system=f"{platform.system()} {platform.release()}",
        jetson=find_jetson(root),
    )


def find_jetson(root: Path = Path("/")) -> Jetson | None:
    """Returns the Jetson that this is, or None when neither the release file nor the device tree says so."""
    release = _text(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    l4t = f"{match[1]}.{match[2]}" if match else None
    model = _text(root / "proc/device-tree/model").rstrip("\0").strip()
    compatible = _text(root / "proc/device-tree/compatible")
    if not release and "nvidia,tegra" not in compatible and "Jetson" not in model:
        return None
    package = re.search(
        r"^Package: nvidia-jetpack\n(?:(?!\n\n)[\s\S])*?^Version: ([^\n]+)",
        _text(root / "var/lib/dpkg/status"),
        re.MULTILINE,
    )
    family = _JETPACKS.get(int(match[1])) if match else None
    return Jetson(model or "unknown board", l4t, package[1].split("+")[0].strip() if package else family)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """Returns one dict of /proc/cpuinfo fields per logical core."""
    cores = []
    for block in _text(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs if key.strip()}
        if "processor" in fields:
            cores.append(fields)
    return cores


def _cpu_name(cores: list[dict[str, str]]) -> str:
    names = dict.fromkeys(_core_name(core) for core in cores)
    return " + ".join(name for name in names if name)


def _core_name(core: dict[str, str]) -> str:
    if "model name" in core:
        return re.sub(r"\((R|TM|tm)\)| CPU| Processor", "", core["model name"]).strip()
    try:
        part = int(core["CPU implementer"], 16), int(core["CPU part"], 16)
    except (KeyError, ValueError):
        return ""
    return _ARM_CORES.get(part, f"Arm core {part[0]:#x}:{part[1]:#x}")


def _features(cores: list[dict[str, str]]) -> tuple[str, ...]:
    """Returns the features that every core has (big and little cores may differ)."""
    flags = [set((core.get("flags") or core.get("Features") or "").split()) for core in cores]
    common = set.intersection(*flags) if flags else set()
    return tuple(name for name in CPU_FEATURES if name in common)


def usable_cores() -> int:
    """Returns the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota(root: Path) -> float | None:
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return int(quota) / int(period)
    return None


def _governor(root: Path) -> str | None:
    found = (
        _text(path).strip() for path in sorted(root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"))
    )
    return ", ".join(dict.fromkeys(name for name in found if name)) or None


def _memory_mb(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) // 1024 if match else None
