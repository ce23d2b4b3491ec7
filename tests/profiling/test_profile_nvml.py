"""A GPU through NVML, against a library that plays one."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemm.errors import UnsupportedDeviceError
from edgemm.profiling.energy import find_meters, measure_energy
from edgemm.profiling.nvml import Nvml, find_gpu
from edgemm.profiling.resources import ResourceWatch
from edgemm.profiling.thermal import look, temperature_json, throttling_json

SOURCE = Path(__file__).with_name("nvml_fake.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@functools.cache
def compiled(*flags: str) -> str:
    file = Path(tempfile.mkdtemp(prefix="nvml_fake")) / "libnvml_fake.so"
    command = [str(COMPILER), "-shared", "-fPIC", *flags, str(SOURCE), "-o", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return str(file)


@pytest.fixture
def fake() -> Iterator[Any]:
    library = ctypes.CDLL(compiled())
    library.fake_energy.argtypes = library.fake_memory.argtypes = (ctypes.c_ulonglong,)
    library.fake_heat.argtypes = (ctypes.c_uint, ctypes.c_ulonglong)
    yield library
    library.fake_gpus(1)
    library.fake_unsupported(0)
    library.fake_energy(0)
    library.fake_memory(0)
    library.fake_heat(40, 0)


def spending(fake: Any, millijoules: int) -> Callable[[], None]:
    """A call that takes this much energy."""
    spent = 1_000_000

    def call() -> None:
        nonlocal spent
        spent += millijoules
        fake.fake_energy(spent)

    fake.fake_energy(spent)
    return call


def test_energy_is_that_of_the_calls(fake: Any, tmp_path: Path) -> None:
    meters, reason = find_meters(tmp_path, Nvml(compiled()))
    assert reason == ""
    found = measure_energy(meters, spending(fake, 250), seconds=0.01, idle=0)
    assert found["per_inference_mj"] == pytest.approx(250)
    assert found["watts"] == pytest.approx(0.25 * found["inferences"] / found["seconds"])
    assert found["sources"][0]["name"] == "NVML Fake GPU"
    assert found["sources"][0]["covers"] == "GPU"
    assert found["sources"][0]["joules"] == pytest.approx(0.25 * found["inferences"])


def test_a_gpu_without_a_counter_is_a_reason(fake: Any, tmp_path: Path) -> None:
    gpu = Nvml(compiled())
    fake.fake_unsupported(1)
    meters, reason = find_meters(tmp_path, gpu)
    assert meters == []
    assert "Fake GPU does not count its energy" in reason
    assert gpu.memory() is gpu.temperature() is gpu.slowed() is None


def test_a_counter_that_stands_still_is_no_energy(fake: Any, tmp_path: Path) -> None:
    meters, _ = find_meters(tmp_path, Nvml(compiled()))
    found = measure_energy(meters, lambda: None, seconds=0, idle=0)
    assert "NVML Fake GPU: the readings did not move" in found["unavailable"]


def test_heat_and_what_slows_the_gpu_down(fake: Any, tmp_path: Path) -> None:
    gpu = Nvml(compiled())
    before = look(tmp_path, gpu)
    fake.fake_heat(84, 0x20 | 0x04 | 0x01)
    after = look(tmp_path, gpu)
    assert temperature_json(before, after) == {
        "zones": [{"name": "Fake GPU", "before_c": 40, "after_c": 84}],
        "hottest_c": 84,
    }
    found = throttling_json(before, after)
    assert found["throttled"]
    assert [reason.split("because of ")[1] for reason in found["because"]] == [
        "its power limit",
        "its temperature (software)",
    ]
    assert not throttling_json(before, before)["throttled"]


def test_memory_of_the_device(fake: Any, tmp_path: Path) -> None:
    fake.fake_memory(100 << 20)
    watch = ResourceWatch(tmp_path, lambda: Nvml(compiled()))
    fake.fake_memory(350 << 20)
    watch.warm()
    on_gpu = watch.to_json(None, [], on_gpu=True)
    assert on_gpu["memory"]["device"] == {
        "device": "Fake GPU",
        "before_mb": 100,
        "used_mb": 350,
        "total_mb": 8192,
    }
    assert on_gpu["clocks"]["gpu"][0]["now_mhz"] == 1410
    assert on_gpu["clocks"]["gpu"][0]["hardware_max_mhz"] == 1980
    on_cpu = watch.to_json(None, [], on_gpu=False)
    assert on_cpu["memory"]["device"] == {"unavailable": "the model runs on the CPU"}
    opened = fake.fake_opened()
    watch.close()
    assert fake.fake_opened() == opened - 1


def test_a_library_that_lacks_a_function(tmp_path: Path) -> None:
    gpu = Nvml(compiled("-DOLD"))
    assert gpu.slowed() is None
    assert gpu.temperature() == 40


def test_the_gpu_is_the_first_that_is_visible(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.fake_gpus(2)
    assert Nvml(compiled()).name == "Fake GPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert Nvml(compiled()).name == "Second GPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert Nvml(compiled()).name == "Fake GPU"


def test_no_gpu_and_no_library(fake: Any, tmp_path: Path) -> None:
    opened = fake.fake_opened()
    fake.fake_gpus(0)
    with pytest.raises(UnsupportedDeviceError, match="nvmlDeviceGetHandleByIndex_v2 gave 6"):
        Nvml(compiled())
    assert fake.fake_opened() == opened
    assert find_gpu(str(tmp_path / "libnone.so")) is None
