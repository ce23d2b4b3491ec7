from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy
import onnxruntime
import pytest

from edgemm.cli import _diagnosis
from edgemm.cli._diagnosis import EXTRAS, PACKAGES, Package, check_packages, load_library, probe, version_tuple
from edgemm.cli.doctor import diagnose, render

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the packages that take seconds to import."""
    light = tuple(p for p in PACKAGES if p.module in ("numpy", "click", "rich", "onnxruntime"))
    monkeypatch.setattr(_diagnosis, "PACKAGES", light)
    monkeypatch.setattr(_diagnosis.check_packages, "__defaults__", (light,))


def package(name: str, path: Path, body: str) -> Path:
    (path / name).mkdir(parents=True)
    (path / name / "__init__.py").write_text(body)
    return path


def test_json_of_the_real_environment(edgemm_process) -> None:
    result = edgemm_process("doctor", "--json")
    assert result.code == 0, result.err
    report = result.json
    packages = {p["name"]: p for p in report["packages"]}
    assert packages["numpy"]["version"] == numpy.__version__
    assert packages["onnxruntime"]["state"] == "ok"
    assert packages["torch"]["state"] == "ok"
    assert set(report["providers"]) == set(onnxruntime.get_available_providers())
    assert report["python"]["supported"] is True
    assert report["machine"]["cores"] >= 1
    convert = next(e for e in report["extras"] if e["name"] == "convert")
    assert convert["complete"]
    assert convert["install"] is None


def test_works_with_the_base_packages_only(tmp_path: Path) -> None:
    """numpy, click, rich and what they need, nothing else: the environment of `pip install edgemm`."""
    base = ("numpy", "click", "rich", "markdown_it", "mdurl", "pygments")
    site = tmp_path / "site"
    site.mkdir()
    for entry in SITE.iterdir():
        if re.split(r"[-.]", entry.name.lower())[0] in (*base, "markdown_it_py"):
            (site / entry.name).symlink_to(entry)
    (site / "edgemm").symlink_to(ROOT / "edgemm")
    program = "import sys; sys.path.append(sys.argv.pop(1)); from edgemm.cli import main; main()"
    command = [sys.executable, "-I", "-S", "-c", program, str(site), "doctor"]
    text = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert text.returncode == 0, text.stderr
    assert "run bundles      no" in text.stdout
    assert "problem: no backend is installed, so no bundle can run here: pip install 'edgemm[cpu]'." in text.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=120)
    report = json.loads(done.stdout)
    states = {p["name"]: p["state"] for p in report["packages"]}
    assert {name for name, state in states.items() if state == "ok"} == {"numpy", "click", "rich"}
    assert set(states.values()) == {"ok", "missing"}
    assert report["providers"] == []
    extras = {e["name"]: e for e in report["extras"]}
    assert "torch" in extras["convert"]["missing"]
    assert extras["convert"]["install"] == "pip install 'edgemm[convert]'"


def test_two_onnxruntimes_are_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = _diagnosis.conflicts()
    assert problem.startswith("onnxruntime and onnxruntime-gpu are installed together")


@pytest.mark.parametrize("name", ["onnxruntime_extensions", "onnxruntime_genai", "onnxruntime_tools"])
def test_companions_of_onnxruntime_are_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _diagnosis.conflicts() == ()


def test_empty_tensorrt_folder_is_a_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (status,) = check_packages((Package("tensorrt", "tensorrt", "tensorrt", "8.6"),))
    assert status.state == "stub"
    assert "no Builder" in (status.detail or "")


def test_tensorrt_without_pip_metadata_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package("tensorrt", tmp_path, "__version__ = '10.3.0'\nclass Builder: pass\n"))
    (status,) = check_packages((Package("tensorrt", "tensorrt", "tensorrt", "8.6"),))
    assert (status.state, status.version) == ("ok", "10.3.0")


def test_old_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package("tensorrt", tmp_path, "__version__ = '8.5.2'\nclass Builder: pass\n"))
    (status,) = check_packages((Package("tensorrt", "tensorrt", "tensorrt", "8.6"),))
    assert (status.state, status.detail) == ("too old", "edgemm needs 8.6 or newer")


def test_broken_packages_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("liar", tmp_path, "raise ImportError('libfoo.so.3: cannot open shared object file')\n")
    package("killer", tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    package("talker", tmp_path, "print('hello from a banner')\n__version__ = '1.2'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert probe("liar")["error"] == "ImportError: libfoo.so.3: cannot open shared object file"
    assert probe("killer")["error"].startswith("import died with SIGILL; the wheel uses instructions")
    assert probe("talker")["version"] == "1.2"


def test_slow_import_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package("sleeper", tmp_path, "import time\ntime.sleep(60)\n"))
    monkeypatch.setattr(_diagnosis, "IMPORT_TIMEOUT", 0.5)
    assert "took more than" in probe("sleeper")["error"]


def test_missing_library_says_what_was_looked_for() -> None:
    library, handle = load_library("Nothing", ["libedgemm_nothing.so.7"])
    assert handle is None
    assert library.why_not == "no libedgemm_nothing.so.7 on this system"


def test_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    bad = tmp_path / "libbad.so.1"
    bad.write_bytes(b"not an ELF file")
    library, handle = load_library("Bad", [str(bad)])
    assert handle is None
    assert "libbad.so.1" in (library.why_not or "")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the C library of Linux")
def test_library_that_loads_names_its_file() -> None:
    library, handle = load_library("C", ["libc.so.6"])
    assert handle is not None
    assert library.found is not None
    assert os.path.isabs(library.found)


@pytest.mark.usefixtures("quick")
def test_jetson_is_described(tmp_path: Path) -> None:
    for name, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    report = diagnose(tmp_path)
    assert report["jetpack"] == {
        "model": "NVIDIA Jetson AGX Orin Developer Kit",
        "l4t": "36.4.3",
        "jetpack": "6.x",
    }
    text = render(report)
    assert "jetpack    6.x · L4T 36.4.3 · NVIDIA Jetson AGX Orin Developer Kit" in text
    assert any("the frequency governor is 'schedutil'" in p for p in report["problems"])
    tensorrt = next(e for e in report["extras"] if e["name"] == "tensorrt")
    assert "python3-libnvinfer" in (tensorrt["install"] or "python3-libnvinfer")


@pytest.mark.usefixtures("quick")
def test_gpu_extra_warns_of_the_shared_folder() -> None:
    extra = next(e for e in diagnose()["extras"] if e["name"] == "gpu")
    if extra["missing"]:
        assert extra["install"].startswith("pip uninstall onnxruntime, then pip install 'edgemm[gpu]'")


def test_table_agrees_with_the_project_file() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {(None, text) for text in project["dependencies"]} | {
        (extra, text) for extra in EXTRAS for text in project["optional-dependencies"][extra]
    }
    assert {(p.extra, f"{p.name}>={p.minimum}") for p in PACKAGES} == declared


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("10.3.0.26", (10, 3, 0, 26)), ("1.0rc1", (1, 0)), ("?", (0,))],
)
def test_version_tuple(text: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(text) == numbers
