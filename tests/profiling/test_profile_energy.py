"""RAPL and INA3221 as their drivers show them, on boards that are not here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgemm.profiling.energy import find_meters, integrate, measure_energy
from edgemm.profiling.resources import ResourceWatch

RAPL = "sys/class/powercap/intel-rapl:0"
RANGE = 262_143_328_850
HWMON = "sys/class/hwmon/hwmon3"


def rapl(energy: int = 1000) -> dict[str, str]:
    return {
        f"{RAPL}/name": "package-0\n",
        f"{RAPL}/energy_uj": f"{energy}\n",
        f"{RAPL}/max_energy_range_uj": f"{RANGE}\n",
    }


def rails(*named: tuple[str, int, int], driver: str = "ina3221", device: str = HWMON) -> dict[str, str]:
    """Files of an INA3221: (rail, millivolts, milliamperes) of each channel."""
    files = {f"{device}/name": f"{driver}\n"}
    for channel, (label, voltage, current) in enumerate(named, start=1):
        files |= {
            f"{device}/in{channel}_label": f"{label}\n",
            f"{device}/in{channel}_input": f"{voltage}\n",
            f"{device}/curr{channel}_input": f"{current}\n",
        }
    return files


def spending(file: Path, microjoules: int) -> Callable[[], None]:
    """A call that moves a counter on, around its end as the kernel does."""

    def call() -> None:
        file.write_text(f"{(int(file.read_text()) + microjoules) % RANGE}\n")

    return call


def test_rapl_counts_the_energy_of_the_calls(tree) -> None:
    root = tree(rapl())
    meters, reason = find_meters(root, None)
    assert ([meter.name for meter in meters], reason) == (["RAPL package-0"], "")
    found = measure_energy(meters, spending(root / RAPL / "energy_uj", 5000), seconds=0.02, idle=0)
    assert found["per_inference_mj"] == pytest.approx(5)
    assert found["inferences"] > 1
    assert found["watts"] == pytest.approx(0.005 * found["inferences"] / found["seconds"])
    assert found["sources"] == [
        {"name": "RAPL package-0", "covers": "processor", "joules": pytest.approx(0.005 * found["inferences"])}
    ]
    assert "idle_watts" not in found


def test_a_counter_that_begins_again(tree) -> None:
    root = tree(rapl(RANGE - 7000))
    meters, _ = find_meters(root, None)
    found = measure_energy(meters, spending(root / RAPL / "energy_uj", 10_000), seconds=0, idle=0)
    assert found["inferences"] == 1
    assert found["per_inference_mj"] == pytest.approx(10)


def test_packages_and_memory_are_added_and_parts_of_them_are_not(tree) -> None:
    files = rapl()
    for name, domain in (("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"), ("intel-rapl:1", "psys")):
        place = f"sys/class/powercap/{name}"
        files |= {
            f"{place}/name": f"{domain}\n",
            f"{place}/energy_uj": "0\n",
            f"{place}/max_energy_range_uj": "9\n",
        }
    meters, _ = find_meters(tree(files), None)
    assert [(meter.name, meter.covers) for meter in meters] == [
        ("RAPL package-0", "processor"),
        ("RAPL dram", "memory"),
    ]


def test_what_the_platform_counts_stands_in_for_packages(tree) -> None:
    files = {path: text.replace("package-0", "psys") for path, text in rapl().items()}
    assert [meter.name for meter in find_meters(tree(files), None)[0]] == ["RAPL psys"]


def test_a_counter_that_may_not_be_read_is_a_reason(tree) -> None:
    root = tree({path: text for path, text in rapl().items() if "energy_uj" not in path})
    (root / RAPL / "energy_uj").mkdir()  # cannot be read, even by root
    meters, reason = find_meters(root, None)
    assert meters == []
    assert "intel-rapl:0/energy_uj cannot be read" in reason


def test_nothing_is_a_reason_and_never_zero(tmp_path: Path) -> None:
    watch = ResourceWatch(tmp_path, lambda: None)
    watch.warm()
    energy = watch.to_json(lambda: None, [], on_gpu=False)["energy"]
    assert energy == {"unavailable": "no INA3221; no RAPL in /sys/class/powercap"}


def test_a_counter_that_stands_still_is_no_energy(tree) -> None:
    meters, _ = find_meters(tree(rapl()), None)
    found = measure_energy(meters, lambda: None, seconds=0, idle=0)
    assert "RAPL package-0: the readings did not move" in found["unavailable"]


def test_the_board_of_a_jetson_is_its_input(tree) -> None:
    root = tree(rails(("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300)) | rapl())
    meters, _ = find_meters(root, None)
    (meter,) = meters
    assert (meter.name, meter.covers) == ("INA3221 VDD_IN", "board")
    assert meter.watts() == pytest.approx(6.0)
    found = measure_energy(meters, lambda: time.sleep(0.01), seconds=0.1, idle=0.05)
    assert found["watts"] == pytest.approx(6.0)
    assert found["idle_watts"] == pytest.approx(6.0, rel=0.2)
    assert found["per_inference_mj"] == pytest.approx(6000 * found["seconds"] / found["inferences"])


def test_rails_are_added_where_none_feeds_all(tree) -> None:
    files = rails(("VDD_GPU_SOC", 5000, 1000), ("VDD_CPU_CV", 5000, 200), ("VIN_SYS_5V0", 5000, 600))
    files |= rails(
        ("NC", 5000, 9), ("VDDQ_VDD2_1V8AO", 5000, 400), ("NC", 5000, 9), device="sys/class/hwmon/hwmon4"
    )
    ((meter,), _) = find_meters(tree(files), None)
    assert meter.name == "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert meter.covers == "module"
    assert meter.watts() == pytest.approx(9.0)


def test_the_driver_of_jetpack_4(tree) -> None:
    device = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names = {0: "POM_5V_IN", 1: "POM_5V_GPU", 2: "POM_5V_CPU"}
    files = {f"{device}/rail_name_{n}": name for n, name in names.items()}
    files |= {f"{device}/in_power{n}_input": power for n, power in {0: "3500", 1: "900", 2: "700"}.items()}
    ((meter,), _) = find_meters(tree(files), None)
    assert (meter.name, meter.watts()) == ("INA3221 POM_5V_IN", pytest.approx(3.5))


def test_other_monitors_are_not_that_of_the_board(tree) -> None:
    assert find_meters(tree(rails(("VDD_IN", 5000, 1200), driver="nvme")), None)[0] == []


def test_a_rail_that_fails_later_is_no_power(tree) -> None:
    root = tree(rails(("VDD_IN", 5000, 1200)))
    ((meter,), _) = find_meters(root, None)
    (root / HWMON / "curr1_input").unlink()
    assert meter.watts() is None
    assert "unavailable" in measure_energy([meter], lambda: None, seconds=0, idle=0)


def test_power_is_integrated_by_trapezoids() -> None:
    assert integrate([0.0, 1.0, 2.0], [0.0, 2.0, 2.0], 0.0, 2.0) == pytest.approx(3.0)
    assert integrate([0.0, 1.0, 2.0], [0.0, 2.0, 2.0], 0.5, 1.5) == pytest.approx(0.75 + 1.0)
    assert integrate([5.0], [3.0], 4.0, 6.0) == pytest.approx(6.0)
    assert integrate([], [], 0.0, 1.0) is None


def test_energy_per_modality_is_an_estimate_and_says_so(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    once = partial(measure_energy, seconds=0, idle=0)
    monkeypatch.setattr("edgemm.profiling.resources.measure_energy", once)
    root = tree(rapl())
    watch = ResourceWatch(root, lambda: None)
    watch.warm()
    shares = [{"name": "camera", "share": 0.75}, {"name": "lidar", "share": 0.25}]
    energy = watch.to_json(spending(root / RAPL / "energy_uj", 8000), shares, on_gpu=False)["energy"]
    per = energy["per_inference_mj"]
    assert per == pytest.approx(8)
    assert energy["modalities"] == [
        {"name": "camera", "estimate_mj": pytest.approx(0.75 * per)},
        {"name": "lidar", "estimate_mj": pytest.approx(0.25 * per)},
    ]
    assert "not measured" in energy["estimate"]
