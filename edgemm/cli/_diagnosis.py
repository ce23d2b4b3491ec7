"""What is installed here and what does it allow? The facts behind `edgemm doctor`.

Each package is imported in a process of its own: a wheel that is built for another CPU dies with SIGILL, and
then only that process dies.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MINIMUM_PYTHON = (3, 10)
IMPORT_TIMEOUT = 180.0
"""Seconds that one package may take to import; torch needs a minute on a cold SD card."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that edgemm can use: its names, the extra that installs it, the oldest version that works."""

    name: str
    module: str
    extra: str | None
    minimum: str


PACKAGES = (
    Package("numpy", "numpy", None, "1.26"),
    Package("click", "click", None, "8.1"),
    Package("rich", "rich", None, "13"),
    Package("onnxruntime", "onnxruntime", "cpu", "1.18"),
    Package("onnxruntime-gpu", "onnxruntime", "gpu", "1.18"),
    Package("openvino", "openvino", "openvino", "2024.4"),
    Package("tensorrt", "tensorrt", "tensorrt", "8.6"),
    Package("tensorrt-rtx-cu12", "tensorrt_rtx", "rtx", "1.4"),
    Package("mlcommons-loadgen", "mlperf_loadgen", "loadgen", "5"),
    Package("torch", "torch", "convert", "2.9"),
    Package("onnx", "onnx", "convert", "1.19"),
    Package("onnx-ir", "onnx_ir", "convert", "0.1.12"),
    Package("onnxscript", "onnxscript", "convert", "0.5.6"),
    Package("ml_dtypes", "ml_dtypes", "convert", "0.4"),
    Package("pydantic", "pydantic", "convert", "2.7"),
    Package("pyyaml", "yaml", "convert", "6"),
    Package("safetensors", "safetensors", "convert", "0.4"),
    Package("scikit-learn", "sklearn", "convert", "1.4"),
    Package("matplotlib", "matplotlib", "convert", "3.8"),
    Package("pillow", "PIL", "images", "10"),
    Package("soundfile", "soundfile", "audio", "0.12"),
    Package("pyarrow", "pyarrow", "arrow", "14"),
    Package("mcap", "mcap", "robotics", "1.6"),
    Package("mcap-ros2-support", "mcap_ros2", "robotics", "0.5"),
    Package("mcap-protobuf-support", "mcap_protobuf", "robotics", "0.5"),
    Package("rosbags", "rosbags", "robotics", "0.10"),
)

EXTRAS = {
    "cpu": "run and profile bundles on the CPU with ONNX Runtime",
    "gpu": "run and profile bundles on an NVIDIA GPU with ONNX Runtime",
    "openvino": "run and profile bundles on the CPU with OpenVINO, where convert measured it as the faster one",
    "tensorrt": "build and run TensorRT engines",
    "rtx": "build and run TensorRT for RTX engines",
    "loadgen": "profile under MLPerf's LoadGen",
    "convert": "convert, quantize and inspect models (torch, ONNX)",
    "images": "read samples from images",
    "audio": "read samples from audio other than PCM wav",
    "arrow": "read samples from Parquet and Hugging Face datasets",
    "robotics": "read samples from MCAP and rosbag2 recordings",
}

_PROBE = """
import json, sys
name, sys.path[:] = sys.argv[1], json.loads(sys.argv[2])
import importlib
if name == "openvino":
    sys.modules["openvino_telemetry"] = None  # it would report the import over the network
module = importlib.import_module(name)
facts = {"version": getattr(module, "__version__", None), "path": getattr(module, "__file__", None)}
if name == "onnxruntime":
    facts["providers"] = module.get_available_providers()
if name == "openvino":
    facts["capabilities"] = list(module.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
if name in ("tensorrt", "tensorrt_rtx"):
    facts["has_builder"] = hasattr(module, "Builder")
if name == "torch":
    facts["cuda"] = module.version.cuda if module.cuda.is_available() else None
sys.stdout.write("\\n" + json.dumps(facts))
"""


@dataclass(frozen=True, slots=True)
class PackageStatus:
    """What was found of one package.

    Attributes:
        package: Which one.
        version: Installed version, or None when it is missing.
        state: `"ok"`, `"missing"`, `"too old"`, `"broken"` (installed, does not import), `"stub"` (an empty
            package of that name) or `"shadowed"` (another package owns the module).
        detail: Why it is not ok, or None.
        facts: What the imported module says of itself.
    """

    package: Package
    version: str | None
    state: str
    detail: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns `{name, version, state, detail, extra, minimum}`."""
        return {
            "name": self.package.name,
            "version": self.version,
            "state": self.state,
            "detail": self.detail,
            "extra": self.package.extra,
            "minimum": self.package.minimum,
        }


@dataclass(frozen=True, slots=True)
class Library:
    """A native library: where it was looked for and what it says, or why it does not load."""

    name: str
    found: str | None
    version: str | None
    why_not: str | None


def check_packages(packages: Sequence[Package] = PACKAGES) -> tuple[PackageStatus, ...]:
    """Returns the status of every package; each installed module is imported once, in its own process."""
    modules = tuple(dict.fromkeys(p.module for p in packages))
    present = [m for m in modules if importlib.util.find_spec(m) is not None]
    with ThreadPoolExecutor(max_workers=2) as pool:
        probed = dict(zip(present, pool.map(probe, present), strict=True))
    return tuple(_status(package, probed.get(package.module)) for package in packages)


def probe(module: str) -> dict[str, Any]:
    """Returns what `module` says of itself after an import in a fresh process, or `{"error": why}`."""
    command = [sys.executable, "-c", _PROBE, module, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"import took more than {IMPORT_TIMEOUT:.0f} s"}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = "; the wheel uses instructions that this CPU lacks" if name == "SIGILL" else ""
        return {"error": f"import died with {name}{why}"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"import ended with exit code {done.returncode}"}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _status(package: Package, facts: dict[str, Any] | None) -> PackageStatus:
    installed = _installed_version(package)
    if facts is None:
        if installed is None:
            return PackageStatus(package, None, "missing")
        return PackageStatus(package, installed, "broken", "installed, but its files are gone")
    if "error" in facts:
        return PackageStatus(package, installed, "broken", facts["error"])
    if facts.get("has_builder") is False:
        where = facts["path"] or "a leftover folder"
        return PackageStatus(package, installed, "stub", f"imports, but has no Builder ({where})", facts)
    if installed is None:
        owners = importlib.metadata.packages_distributions().get(package.module, [])
        if owners or facts["version"] is None:
            # Another package gives this module; that one has its own line.
            return PackageStatus(package, None, "missing")
        installed = str(facts["version"])  # no pip metadata, for example from a JetPack image
    if version_tuple(installed) < version_tuple(package.minimum):
        detail = f"edgemm needs {package.minimum} or newer"
        return PackageStatus(package, installed, "too old", detail, facts)
    return PackageStatus(package, installed, "ok", None, facts)


def _installed_version(package: Package) -> str | None:
    # TensorRT's wheels carry the CUDA version in their name: tensorrt, tensorrt-cu12, tensorrt_cu13.
    names = [package.name]
    if package.extra in ("tensorrt", "rtx"):
        base = package.module.replace("_", "-")
        names += [base, f"{base}-cu12", f"{base}-cu13", f"{base}-cu11"]
    for name in dict.fromkeys(names):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_tuple(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version, to compare: `"2.13.0+cpu"` is `(2, 13, 0)`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else (0,)


def conflicts() -> tuple[str, ...]:
    """Returns what is wrong between packages: several that write the same module folder."""
    names = {str(d.metadata["Name"] or "").lower().replace("_", "-") for d in importlib.metadata.distributions()}
    flavour = re.compile(r"(ort-nightly|onnxruntime)(-(?!extensions|tools|genai)[a-z]+)*")
    owners = sorted(name for name in names if flavour.fullmatch(name))
    if len(owners) < 2:
        return ()
    return (
        f"{' and '.join(owners)} are installed together; they write the same folder 'onnxruntime' and the last "
        f"one wins. Keep one: pip uninstall {' '.join(owners)}, then install the one you need.",
    )


def check_cuda() -> dict[str, Any]:
    """Returns `{driver, runtime, devices, nvidia_smi}`: each found, or why not."""
    driver, library = load_library("CUDA driver", ["libcuda.so.1", "libcuda.so"])
    devices: list[dict[str, Any]] = []
    if library is not None:
        driver, devices = _cuda_devices(driver, library)
    runtime, handle = load_library("CUDA runtime", [f"libcudart.so.{v}" for v in ("13", "12", "11.0")])
    if handle is not None:
        version = ctypes.c_int(0)
        handle.cudaRuntimeGetVersion(ctypes.byref(version))
        runtime = Library(runtime.name, runtime.found, _cuda_version(version.value), None)
    return {"driver": driver, "runtime": runtime, "devices": devices, "nvidia_smi": shutil.which("nvidia-smi")}


def _cuda_devices(driver: Library, library: ctypes.CDLL) -> tuple[Library, list[dict[str, Any]]]:
    """Asks the driver for its version and its devices (name, compute capability, memory in MiB)."""
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    version = _cuda_version(number.value)
    code = library.cuInit(0)
    if code != 0:
        why = f"cuInit failed with code {code} (100: no device, 803 or 804: driver too old)"
        return Library(driver.name, driver.found, version, why), []
    library.cuDeviceGetCount(ctypes.byref(number))
    devices = []
    for index in range(number.value):
        name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(0), ctypes.c_int(0)
        memory, device = ctypes.c_size_t(0), ctypes.c_int(0)
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(name, 256, device)
        library.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
        library.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        devices.append(
            {
                "name": name.value.decode(errors="replace"),
                "compute_capability": f"{major.value}.{minor.value}",
                "memory_mb": memory.value // 2**20,
            }
        )
    return Library(driver.name, driver.found, version, None), devices


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def check_tensorrt() -> Library:
    """Returns what there is of TensorRT's runtime library (libnvinfer)."""
    library, handle = load_library("TensorRT", [f"libnvinfer.so.{v}" for v in ("11", "10", "8")])
    if handle is None:
        return library
    number = handle.getInferLibVersion()
    # TensorRT 8 counts 8601 for 8.6.1, 10 and later 100300 for 10.3.0.
    step = 10_000 if number >= 100_000 else 1_000
    version = f"{number // step}.{number % step // 100}.{number % 100}"
    return Library(library.name, library.found, version, None)


def load_library(name: str, candidates: Sequence[str]) -> tuple[Library, ctypes.CDLL | None]:
    """Loads the first of `candidates` that the system or a pip-installed NVIDIA package has.

    Returns:
        What was found, and the loaded library or None. Without one, `why_not` is the loader's message for the
        file that exists but does not load, else which names were looked for.
    """
    site = Path(sysconfig.get_paths()["purelib"])
    why_not = f"no {' or '.join(candidates)} on this system"
    for candidate in candidates:
        packaged = [*site.glob(f"nvidia/*/lib/{candidate}"), *site.glob(f"tensorrt*libs/{candidate}")]
        for path in [candidate, *map(str, sorted(packaged))]:
            try:
                handle = ctypes.CDLL(path)
                return Library(name, _mapped_path(candidate) or path, None, None), handle
            except OSError as error:
                if "No such file" not in str(error):
                    why_not = str(error)
    return Library(name, None, None, why_not), None


def _mapped_path(library: str) -> str | None:
    """Returns the file that the loader chose for `library`, or None where the kernel does not show it."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    start = library.split(".so")[0] + ".so"
    paths = re.findall(r"(/\S.*)$", maps, re.MULTILINE)
    return next((path for path in paths if Path(path).name.startswith(start)), None)
