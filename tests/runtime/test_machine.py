"""Boards that are not here, described by the files that their kernels show."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.runtime.machine import describe_machine, find_jetson

ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
DPKG = """Package: nvidia-container
Status: install ok installed
Version: 6.1+b123

Package: nvidia-jetpack
Status: install ok installed
Architecture: arm64
Version: 6.2+b77
Description: NVIDIA Jetpack Meta Package
"""


def arm_core(number: int, part: str, features: str) -> str:
    return (
        f"processor\t: {number}\nBogoMIPS\t: 62.50\nFeatures\t: {features}\n"
        f"CPU implementer\t: 0x41\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
    )


def test_orin_with_its_jetpack_package(tree) -> None:
    root = tree(
        {
            "etc/nv_tegra_release": ORIN,
            "var/lib/dpkg/status": DPKG,
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
            "proc/cpuinfo": "".join(arm_core(i, "0xd42", "fp asimd asimdhp asimddp") for i in range(6)),
            "proc/meminfo": "MemTotal:        7802904 kB\nMemFree: 12 kB\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil\n",
        }
    )
    machine = describe_machine(root)
    assert machine.jetson is not None
    assert (machine.jetson.l4t, machine.jetson.jetpack) == ("36.4.3", "6.2")
    assert machine.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (machine.cpu, machine.cores, machine.memory_mb) == ("Cortex-A78AE", 6, 7620)
    assert machine.features == ("asimd", "asimdhp", "asimddp")
    assert machine.governor == "schedutil"
    assert machine.has_int8_dot_product
    assert "Cortex-A78AE (DotProd) · 6 cores · governor schedutil" in machine.summary()


@pytest.mark.parametrize(
    ("release", "l4t", "family"),
    [("R35 (release), REVISION: 4.1", "35.4.1", "5.1"), ("R99 (release), REVISION: 1.0", "99.1.0", None)],
)
def test_jetpack_family_from_the_release_file(tree, release: str, l4t: str, family: str | None) -> None:
    jetson = find_jetson(tree({"etc/nv_tegra_release": f"# {release}, GCID: 1, BOARD: t186ref\n"}))
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack) == (l4t, family)


def test_jetson_container_without_release_file(tree) -> None:
    jetson = find_jetson(tree({"proc/device-tree/compatible": "nvidia,p3701-0000\0nvidia,tegra234\0"}))
    assert jetson is not None
    assert jetson.l4t is None


def test_raspberry_pi_is_a_board_but_no_jetson(tree) -> None:
    machine = describe_machine(
        tree(
            {
                "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
                "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
                "proc/cpuinfo": arm_core(0, "0xd0b", "fp asimd asimddp"),
            }
        )
    )
    assert machine.jetson is None
    assert machine.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.cpu == "Cortex-A76"


def test_big_and_little_cores_keep_only_common_features(tree) -> None:
    cpuinfo = arm_core(0, "0xd03", "fp asimd") + arm_core(1, "0xd0b", "fp asimd asimddp")
    machine = describe_machine(tree({"proc/cpuinfo": cpuinfo}))
    assert machine.cpu == "Cortex-A53 + Cortex-A76"
    assert machine.features == ("asimd",)
    assert not machine.has_int8_dot_product


def test_x86_in_a_container_with_a_quota(tree) -> None:
    machine = describe_machine(
        tree(
            {
                "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i7-1185G7 CPU @ 3.00GHz\n"
                "flags\t\t: fpu avx2 avx512_vnni\n\n",
                "sys/fs/cgroup/cpu.max": "150000 100000\n",
            }
        )
    )
    assert machine.cpu == "Intel Core i7-1185G7 @ 3.00GHz"
    assert machine.cpu_quota == 1.5
    assert machine.summary().endswith("(AVX512-VNNI) · 1 core, limited to 1.5 · governor not shown")


@pytest.mark.parametrize("text", ["max 100000\n", "", "garbage"])
def test_no_quota(tree, text: str) -> None:
    assert describe_machine(tree({"sys/fs/cgroup/cpu.max": text})).cpu_quota is None


def test_empty_tree_still_describes(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.cpu == "unknown processor"
    assert machine.to_json()["features"] == []


def test_this_machine() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.cpu
    assert machine.to_json()["cpu"] == machine.cpu
