"""The catalogue of targets, and machines that are not here, described by their files and their GPUs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from edgemm.backends import targets
from edgemm.backends.targets import (
    RTX_SMS,
    Gpu,
    ask_nvidia_smi,
    ask_nvml,
    detect_target,
    find_libnvinfer,
    find_target,
    list_targets,
    module_version,
)
from edgemm.errors import BackendError

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"


def nothing(module: str) -> None:
    return None


class TestCatalogue:
    def test_names(self) -> None:
        names = [t.name for t in list_targets()]
        assert len(set(names)) == len(names)
        assert names[:7] == ["cpu", "cuda", "ort-tensorrt", "rtx-turing", "rtx-ampere", "rtx-ada", "rtx-blackwell"]
        boards = {"jetson-orin-nano", "jetson-orin-nx", "jetson-orin-agx", "jetson-thor", "jetson-xavier"}
        assert boards <= set(names)

    @pytest.mark.parametrize("target", list_targets(), ids=lambda t: t.name)
    def test_every_fact_has_a_source(self, target: targets.Target) -> None:
        assert target.facts
        assert all(f.text and f.source and f.field for f in target.facts)
        assert all(j.source for j in target.jetpacks)
        assert target.precisions[0] == "fp32"
        assert target.backends
        if target.sm is not None:
            assert {"sm", "precisions"} <= {f.field for f in target.facts}

    def test_rtx_covers_what_its_builder_takes(self) -> None:
        assert {t.sm for t in list_targets() if t.kind == "rtx"} == set(RTX_SMS)

    def test_formats_that_are_not_everywhere(self) -> None:
        having = {
            name: {t.name for t in list_targets() if name in t.precisions}
            for name in ("fp8", "fp4", "bf16", "int4")
        }
        assert having["fp8"] == {"rtx-ada", "rtx-blackwell", "rtx-sm121", "jetson-thor"}
        assert having["fp4"] == having["fp8"] - {"rtx-ada"}
        assert "rtx-turing" not in having["bf16"] | having["int4"]
        assert "jetson-xavier" not in having["bf16"]

    def test_jetpacks(self) -> None:
        orin, thor, xavier = (find_target(n) for n in ("jetson-orin-nano", "jetson-thor", "jetson-xavier"))
        assert orin.tensorrt == ("8.6", "10.3", "10.16", "11.4")
        assert thor.tensorrt == ("10.13", "10.16", "11.4")
        assert {j.python for j in orin.jetpacks} == {"3.10", "3.12"}
        assert (orin.dla, find_target("jetson-orin-nx").dla, thor.dla) == (0, 2, 0)
        assert "tensorrt" not in xavier.backends
        assert xavier.builder is None

    def test_sources_that_disagree_are_both_there(self) -> None:
        texts = [f.text for f in find_target("jetson-thor").facts if f.field == "sm"]
        assert any("11.0" in t for t in texts)
        assert any("disagrees: 10.1" in t for t in texts)

    def test_builders(self) -> None:
        assert find_target("cpu").builder is None
        assert find_target("ort-tensorrt").builder == "ort-tensorrt"
        assert find_target("rtx-ada").builder == "tensorrt-rtx"
        assert find_target("jetson-orin-agx").builder == "tensorrt"

    def test_json_is_plain(self) -> None:
        import json

        data = json.loads(json.dumps(find_target("jetson-orin-nx").to_json()))
        assert data["jetpacks"][0]["tensorrt"] == data["tensorrt"][0] == "8.6"


class TestFind:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("cpu", "cpu"),
            ("RTX-Ampere", "rtx-ampere"),
            ("sm86", "rtx-ampere"),
            ("SM_120", "rtx-blackwell"),
            ("rtx-sm75", "rtx-turing"),
            ("rtx-sm80", "rtx-sm80"),
            ("sm121", "rtx-sm121"),
            ("sm110", "jetson-thor"),
            ("orin_nano", "jetson-orin-nano"),
            ("xavier", "jetson-xavier"),
        ],
    )
    def test_names_and_other_names(self, name: str, found: str) -> None:
        assert find_target(name).name == found

    def test_a_typing_error(self) -> None:
        with pytest.raises(BackendError, match="no target 'jetson-orin-nanno'") as error:
            find_target("jetson-orin-nanno")
        assert error.value.hint == "did you mean 'jetson-orin-nano'?"

    def test_a_compute_capability_that_nothing_builds_for(self) -> None:
        with pytest.raises(BackendError, match="TensorRT-RTX builds for SM 75, 80, 86, 89, 120, 121"):
            find_target("sm90")

    def test_a_compute_capability_of_several_boards(self) -> None:
        with pytest.raises(BackendError, match="is several targets: jetson-orin-nano, jetson-orin-nx"):
            find_target("sm87")


class TestDetect:
    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0", "jetson-orin-nano"),
            ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0", "jetson-orin-nx"),
            ("NVIDIA Jetson AGX Orin Developer Kit\0", "jetson-orin-agx"),
            ("NVIDIA Jetson AGX Thor Developer Kit\0", "jetson-thor"),
            ("Jetson-AGX Xavier\0", "jetson-xavier"),
            ("NVIDIA Orin NX Developer Kit\0", "jetson-orin-nx"),
        ],
    )
    def test_boards(self, tree, model: str, name: str) -> None:
        files = {"proc/device-tree/model": model, "proc/device-tree/compatible": "nvidia,tegra234\0"}
        detection = detect_target(tree(files), version_of=nothing)
        assert detection.target.name == name
        assert model.rstrip("\0") in detection.found[0]

    def test_a_jetson_with_everything(self, tree) -> None:
        root = tree(
            {
                "etc/nv_tegra_release": RELEASE,
                "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
                "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
                "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
            }
        )
        detection = detect_target(root, version_of=lambda module: "10.3.0" if module == "tensorrt" else None)
        assert detection.found == (
            "NVIDIA Jetson Orin Nano Developer Kit (L4T 36.4.3, JetPack 6.x)",
            "TensorRT 10.3.0 (libnvinfer)",
            "Python module tensorrt 10.3.0",
        )
        assert detection.missing == ()

    def test_a_jetson_without_tensorrt(self, tree) -> None:
        root = tree({"proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0"})
        detection = detect_target(root, version_of=nothing)
        assert "no /etc/nv_tegra_release (a container?)" in detection.found[0]
        assert [m.split(":")[0] for m in detection.missing] == ["Python module tensorrt", "libnvinfer"]

    def test_a_container_that_shows_the_release_only(self, tree) -> None:
        detection = detect_target(tree({"etc/nv_tegra_release": RELEASE}), version_of=nothing)
        assert detection.target.name == "jetson-orin-nano"
        assert detection.found[1] == "told by L4T 36.4.3 alone: taken for the smallest board that has it"

    def test_a_jetson_that_is_not_known(self, tree) -> None:
        old = RELEASE.replace("R36", "R32")
        root = tree({"etc/nv_tegra_release": old, "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0"})
        detection = detect_target(root, version_of=nothing)
        assert detection.target.name == "cpu"
        assert "does not know" in detection.found[1]

    @pytest.mark.parametrize(("sm", "name"), [(75, "rtx-turing"), (86, "rtx-ampere"), (121, "rtx-sm121")])
    def test_desktop_gpus(self, tmp_path: Path, sm: int, name: str) -> None:
        card = Gpu("NVIDIA RTX", sm, 24_564)
        detection = detect_target(tmp_path, gpus=lambda: (card,), version_of=nothing)
        assert detection.target.name == name
        assert detection.found == (f"NVIDIA RTX, compute capability {sm // 10}.{sm % 10}, 24,564 MiB",)
        assert detection.missing == ("Python module tensorrt_rtx: pip install 'edgemm[rtx]'",)

    def test_a_data_centre_gpu(self, tmp_path: Path) -> None:
        detection = detect_target(tmp_path, gpus=lambda: (Gpu("NVIDIA H100", 90, 81_559),), version_of=nothing)
        assert detection.target.name == "ort-tensorrt"
        assert "TensorRT-RTX does not build for SM 90" in detection.found

    def test_neither(self, tmp_path: Path) -> None:
        detection = detect_target(tmp_path)
        assert (detection.target.name, detection.missing) == ("cpu", ())

    def test_auto_is_this_machine(self) -> None:
        assert find_target("auto") == detect_target().target


class TestProbes:
    def test_nvidia_smi(self, tmp_path: Path) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(
            '#!/bin/sh\necho "$@" > "$(dirname "$0")/asked"\n'
            "printf 'NVIDIA GeForce RTX 3060, 8.6, 12288\\nNVIDIA, odd name, [N/A], 1\\nGB10, 12.1, [N/A]\\n'\n"
        )
        script.chmod(0o755)
        assert ask_nvidia_smi(str(script)) == (Gpu("NVIDIA GeForce RTX 3060", 86, 12_288), Gpu("GB10", 121, 0))
        assert "--query-gpu=name,compute_cap,memory.total" in (tmp_path / "asked").read_text()

    def test_an_nvidia_smi_that_fails(self, tmp_path: Path) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
        script.chmod(0o755)
        assert ask_nvidia_smi(str(script)) == ()
        assert ask_nvidia_smi(str(tmp_path / "none")) == ()

    def test_nvml(self, tmp_path: Path) -> None:
        library = compile_library(
            tmp_path,
            """
            #include <string.h>
            int nvmlInit_v2(void) { return 0; }
            int nvmlShutdown(void) { return 0; }
            int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return 0; }
            int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
                if (i == 1) return 15;
                *d = (void *)(long)(i + 1);
                return 0;
            }
            int nvmlDeviceGetName(void *d, char *name, unsigned n) { strncpy(name, "NVIDIA RTX", n); return 0; }
            int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) {
                *a = (long)d == 1 ? 8 : 12; *b = (long)d == 1 ? 9 : 0; return 0;
            }
            int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 8ull << 30; return 0; }
            """,
        )
        assert ask_nvml(library) == (Gpu("NVIDIA RTX", 89, 8192), Gpu("NVIDIA RTX", 120, 8192))

    def test_an_nvml_without_a_driver(self, tmp_path: Path) -> None:
        assert ask_nvml(compile_library(tmp_path, "int nvmlInit_v2(void) { return 9; }")) == ()
        assert ask_nvml("libnothing-of-this-name.so.1") == ()

    def test_libnvinfer(self, tree) -> None:
        root = tree({f"usr/lib/x86_64-linux-gnu/libnvinfer.so.{v}": "" for v in ("8", "8.6.2", "10.13.3")})
        assert find_libnvinfer(root) == "10.13.3"
        assert find_libnvinfer(root / "usr") is None

    def test_modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import numpy

        assert module_version("numpy") == numpy.__version__
        assert module_version("no_module_of_this_name") is None
        (tmp_path / "stubs_only_here").mkdir()
        (tmp_path / "bare_module_here.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        assert module_version("stubs_only_here") is None
        assert module_version("bare_module_here") == "of unknown version"


def compile_library(folder: Path, code: str) -> str:
    """Returns a shared library of `code`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    source, library = folder / "nvml.c", folder / "libnvml.so"
    source.write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert ctypes.CDLL(str(library))
    return str(library)
