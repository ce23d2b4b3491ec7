"""Clocks, power modes, heat and throttling of boards that are not here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgemm.profiling.clocks import clocks_json
from edgemm.profiling.thermal import look, temperature_json, throttling_json

POLICY = "sys/devices/system/cpu/cpufreq/policy0"
NVPMODEL = """# comment
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=15W >
"""


def policy(low: int, high: int, governor: str = "schedutil", place: str = POLICY) -> dict[str, str]:
    return {
        f"{place}/related_cpus": "0 1 2 3\n",
        f"{place}/scaling_governor": f"{governor}\n",
        f"{place}/scaling_min_freq": f"{low}\n",
        f"{place}/scaling_max_freq": f"{high}\n",
        f"{place}/cpuinfo_max_freq": "1984000\n",
        f"{place}/scaling_cur_freq": "1497600\n",
    }


def orin(low: int, high: int) -> dict[str, str]:
    gpu = "sys/class/devfreq/17000000.gpu"
    return policy(low, high) | {
        f"{gpu}/governor": "nvhost_podgov\n",
        f"{gpu}/min_freq": f"{306 if low != high else 918}000000\n",
        f"{gpu}/max_freq": "918000000\n",
        f"{gpu}/cur_freq": "306000000\n",
        f"{gpu}/available_frequencies": "306000000 612000000 918000000 1020000000\n",
        "sys/class/devfreq/15340000.vic/max_freq": "1\n",
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
        "etc/nvpmodel.conf": NVPMODEL,
    }


def test_orin_in_a_power_mode(tree) -> None:
    found = clocks_json(tree(orin(729_600, 1_497_600)))
    assert found["power_mode"] == {"name": "15W", "source": "nvpmodel"}
    assert found["locked"] is False
    assert found["cpu"] == [
        {
            "name": "cpu 0 1 2 3",
            "governor": "schedutil",
            "min_mhz": pytest.approx(729.6),
            "max_mhz": pytest.approx(1497.6),
            "hardware_max_mhz": pytest.approx(1984),
            "now_mhz": pytest.approx(1497.6),
        }
    ]
    (gpu,) = found["gpu"]
    assert (gpu["name"], gpu["max_mhz"], gpu["hardware_max_mhz"]) == ("17000000.gpu", 918, 1020)


def test_jetson_clocks_locks_every_clock(tree) -> None:
    assert clocks_json(tree(orin(1_497_600, 1_497_600)))["locked"] is True


def test_a_power_mode_without_a_name(tree) -> None:
    found = clocks_json(tree({"var/lib/nvpmodel/status": "pmode:0007"}))
    assert found["power_mode"] == {"name": "mode 7", "source": "nvpmodel"}


def test_an_x86_laptop(tree) -> None:
    files = policy(400_000, 4_200_000, "powersave", "sys/devices/system/cpu/cpu0/cpufreq")
    files |= {
        "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        "sys/firmware/acpi/platform_profile": "balanced\n",
    }
    found = clocks_json(tree(files))
    assert (found["cpu"][0]["name"], found["cpu"][0]["governor"]) == ("cpu0", "powersave")
    assert found["turbo"] is True
    assert found["power_mode"] == {"name": "balanced", "source": "platform_profile"}
    assert "no GPU clock" in found["gpu"]["unavailable"]


@pytest.mark.parametrize(("boost", "turbo"), [("1", True), ("0", False)])
def test_boost_of_other_processors(tree, boost: str, turbo: bool) -> None:
    assert clocks_json(tree({"sys/devices/system/cpu/cpufreq/boost": boost}))["turbo"] is turbo


def test_a_container_shows_nothing_and_says_so(tmp_path: Path) -> None:
    found = clocks_json(tmp_path)
    assert "no cpufreq" in found["cpu"]["unavailable"]
    assert "no nvpmodel" in found["power_mode"]["unavailable"]
    assert found["locked"] is found["turbo"] is None


def test_nvpmodel_is_asked_where_its_status_is_not_readable(tmp_path: Path, monkeypatch) -> None:
    command = tmp_path / "nvpmodel"
    command.write_text("#!/bin/sh\n[ \"$1\" = -q ] && printf 'NV Power Mode: MODE_25W\\n1\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if Path("/var/lib/nvpmodel/status").exists():
        pytest.skip("this is a Jetson")
    assert clocks_json(Path("/"))["power_mode"] == {"name": "MODE_25W", "source": "nvpmodel -q"}


def zones(*named: tuple[str, str]) -> dict[str, str]:
    base = "sys/class/thermal/thermal_zone"
    files = {f"{base}{at}/type": f"{name}\n" for at, (name, _) in enumerate(named)}
    return files | {f"{base}{at}/temp": f"{value}\n" for at, (_, value) in enumerate(named)}


def test_thermal_zones_before_and_after(tree) -> None:
    before = look(
        tree(zones(("cpu-thermal", "41500"), ("acpitz", "30000"), ("acpitz", "31000"), ("off", "-256000")))
    )
    after = look(
        tree(zones(("cpu-thermal", "63000"), ("acpitz", "30000"), ("acpitz", "32000"), ("off", "-256000")))
    )
    found = temperature_json(before, after)
    assert found["zones"] == [
        {"name": "cpu-thermal", "before_c": 41.5, "after_c": 63},
        {"name": "acpitz", "before_c": 30, "after_c": 30},
        {"name": "acpitz (thermal_zone2)", "before_c": 31, "after_c": 32},
    ]
    assert found["hottest_c"] == 63


def test_sensors_of_the_processor_where_there_are_no_zones(tree) -> None:
    device = "sys/class/hwmon/hwmon1"
    files = {
        f"{device}/name": "k10temp\n",
        f"{device}/temp1_input": "55250\n",
        f"{device}/temp1_label": "Tctl\n",
        "sys/class/hwmon/hwmon0/name": "nvme\n",
        "sys/class/hwmon/hwmon0/temp1_input": "40000\n",
    }
    assert look(tree(files)).zones == {"k10temp Tctl": 55.25}


def test_no_sensor_is_a_reason(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert "no thermal zone" in temperature_json(seen, seen)["unavailable"]
    assert "no throttle counter" in throttling_json(seen, seen)["unavailable"]


def throttles(core: tuple[int, int], package: int, overcurrent: int = 0) -> dict[str, str]:
    base = "sys/devices/system/cpu"
    files = {f"{base}/cpu{at}/thermal_throttle/core_throttle_count": str(n) for at, n in enumerate(core)}
    files |= {f"{base}/cpu{at}/thermal_throttle/package_throttle_count": str(package) for at in range(2)}
    return files | {"sys/class/hwmon/hwmon2/oc1_event_cnt": str(overcurrent)}


def test_counters_that_rise_mean_throttling(tree) -> None:
    before = look(tree(throttles((3, 4), 9)))
    assert throttling_json(before, before)["throttled"] is False
    found = throttling_json(before, look(tree(throttles((3, 6), 10, overcurrent=1))))
    assert found["because"] == [
        "core_throttle_count rose by 2",
        "package_throttle_count rose by 1",
        "oc1_event_cnt rose by 1",
    ]
    assert found["watched"] == ["core_throttle_count", "package_throttle_count", "oc1_event_cnt"]


def test_cooling_that_is_on_means_throttling_and_a_fan_does_not(tree) -> None:
    base = "sys/class/thermal/cooling_device"
    files = {f"{base}0/type": "thermal-cpufreq-0", f"{base}0/cur_state": "0"}
    files |= {f"{base}1/type": "pwm-fan", f"{base}1/cur_state": "3"}
    files |= {f"{base}2/type": "intel_powerclamp", f"{base}2/cur_state": "-1"}
    cool = look(tree(files))
    assert throttling_json(cool, cool) == {
        "throttled": False,
        "because": [],
        "watched": ["thermal-cpufreq-0", "intel_powerclamp"],
    }
    hot = look(tree({f"{base}0/cur_state": "2"}))
    assert throttling_json(cool, hot)["because"] == ["cooling device thermal-cpufreq-0 is on (state 2)"]
