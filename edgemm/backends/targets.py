"""The catalogue of targets, and which of them this machine is.

A target is what an engine is built for: `cpu`, an architecture of desktop GPU, a Jetson. What is known of each,
and from which document, is data in `target_data`; sources that disagree are both there.
"""

from __future__ import annotations

import csv
import ctypes
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemm.backends.target_data import ALIASES, JETPACKS, SOURCES, TARGETS
from edgemm.errors import BackendError, did_you_mean
from edgemm.runtime.machine import Jetson, find_jetson

AUTO = "auto"
"""The target that this machine is."""

_MODULE_OF = {
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt": "tensorrt",
    "ort-tensorrt": "tensorrt",
    "ort-cuda": "tensorrt",
}

RTX_SMS = (75, 80, 86, 89, 120, 121)
"""What TensorRT-RTX builds for (its enum ComputeCapability, 1.7.1)."""


@dataclass(frozen=True, slots=True)
class JetPack:
    """A JetPack release and what it brings.

    Attributes:
        version: For example `"6.2"`.
        l4t: Jetson Linux release that it is on.
        tensorrt: TensorRT's version, major and minor.
        cuda: CUDA's version.
        python: Version of the Python that its TensorRT is for.
        source: The document that says so.
    """

    version: str
    l4t: str
    tensorrt: str
    cuda: str
    python: str
    source: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement about a field of a target, and the document that makes it."""

    field: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine is built for.

    Attributes:
        name: Unique; what `--target` takes.
        kind: `"cpu"`, `"cuda"` (any NVIDIA GPU, by ONNX Runtime), `"rtx"` (by TensorRT-RTX) or `"jetson"`.
        summary: One line for people.
        sm: Compute capability times ten (8.6 is 86), or None where it is not one device.
        jetpacks: What may be installed on it, oldest first; empty for all but a Jetson.
        precisions: Number formats that exist there: `fp32`, `tf32`, `fp16`, `bf16`, `int8`, `fp8`, and `int4` and
            `fp4` for weights.
        dla: Most deep learning accelerator cores of any module.
        memory_gb: Memory of the modules in GB; empty where it is not one device.
        backends: Candidates, best first.
        facts: What the fields rest on.
    """

    name: str
    kind: str
    summary: str
    sm: int | None = None
    jetpacks: tuple[JetPack, ...] = ()
    precisions: tuple[str, ...] = ()
    dla: int = 0
    memory_gb: tuple[int, ...] = ()
    backends: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()

    @property
    def builder(self) -> str | None:
        """`"tensorrt-rtx"`, `"tensorrt"`, or None where no TensorRT reads the graph."""
        return next((b for b in ("tensorrt-rtx", "tensorrt", "ort-tensorrt") if b in self.backends), None)

    @property
    def module(self) -> str | None:
        """Python module whose graphs this target takes: `"tensorrt"` or `"tensorrt_rtx"`; None for a CPU's."""
        return _MODULE_OF.get(self.backends[0]) if self.backends else None

    @property
    def tensorrt(self) -> tuple[str, ...]:
        """TensorRT versions that may be there, oldest first; empty where that is open."""
        return tuple(dict.fromkeys(j.tensorrt for j in self.jetpacks))

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        return asdict(self) | {"tensorrt": list(self.tensorrt)}


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU: its name, compute capability times ten, memory in MiB."""

    name: str
    sm: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Detection:
    """Which target this machine is.

    Attributes:
        target: The best one that its hardware allows.
        found: What was found, in words.
        missing: What is not there and would be needed to build or run engines for it, with the remedy.
    """

    target: Target
    found: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        return {"target": self.target.name, "found": list(self.found), "missing": list(self.missing)}


def list_targets() -> tuple[Target, ...]:
    """Returns every target in the catalogue."""
    return tuple(_target(name) for name in TARGETS)


def find_target(name: str) -> Target:
    """Returns the target called `name`.

    Args:
        name: A name in the catalogue, `rtx-smXX` or `smXX` for a compute capability, a common other name
            (`orin-nano`), or `auto` for this machine.

    Raises:
        BackendError: There is no such target; the hint names the closest one.
    """
    key = name.strip().lower().replace("_", "-")
    if key == AUTO:
        return detect_target().target
    key = ALIASES.get(key, key)
    if key in TARGETS:
        return _target(key)
    number = re.fullmatch(r"(?:rtx-)?sm-?(\d+)", key)
    if number:
        return _target_of_sm(name, int(number[1]))
    raise BackendError(
        f"no target '{name}' (targets: {', '.join(TARGETS)}, rtx-smXX, {AUTO}).",
        hint=did_you_mean(key, [*TARGETS, *ALIASES, AUTO], "see `edgemm targets`"),
    )


def find_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Returns the targets called `names`, each once, in their order.

    Raises:
        BackendError: As `find_target`.
    """
    return tuple({t.name: t for t in map(find_target, names)}.values())


def _target_of_sm(name: str, sm: int) -> Target:
    found = [n for n, fields in TARGETS.items() if fields.get("sm") == sm]
    if len(found) == 1:
        return _target(found[0])
    if found:
        raise BackendError(
            f"'{name}' is several targets: {', '.join(found)}.", hint="name the board, for example " + found[0]
        )
    raise BackendError(
        f"no target '{name}': TensorRT-RTX builds for SM {', '.join(map(str, RTX_SMS))}.",
        hint="for other NVIDIA GPUs use ort-tensorrt or cuda",
    )


def _target(name: str) -> Target:
    fields: Mapping[str, Any] = TARGETS[name]
    jetpacks = tuple(
        JetPack(v, **(JETPACKS[v] | {"source": SOURCES[JETPACKS[v]["source"]]}))
        for v in fields.get("jetpacks", ())
    )
    facts = tuple(Fact(f, text, SOURCES[source]) for f, source, text in fields["facts"])
    return Target(name, **(dict(fields) | {"jetpacks": jetpacks, "facts": facts}))


def detect_target(
    root: Path = Path("/"),
    *,
    gpus: Callable[[], tuple[Gpu, ...]] | None = None,
    version_of: Callable[[str], str | None] | None = None,
) -> Detection:
    """Returns which target this machine is, what says so, and what is missing.

    A Jetson is told by `/etc/nv_tegra_release` and its device tree, a desktop GPU by nvidia-smi or NVML.

    Args:
        root: Folder that holds `etc`, `proc`, `usr` and `var`; another one than `/` describes that tree.
        gpus: Lists NVIDIA GPUs; by default asks this machine, and nothing for another `root`.
        version_of: Returns the version of an installed Python module, or None; by default looks for it here.
    """
    here = root == Path("/")
    jetson = find_jetson(root)
    library = find_libnvinfer(root)
    version_of = version_of or module_version
    cards = (gpus or (find_gpus if here else tuple))()
    if jetson is not None:
        target, found = _jetson_target(jetson)
    elif cards:
        target, found = _gpu_target(cards)
    else:
        target, found = _target("cpu"), ["no NVIDIA GPU: nvidia-smi and NVML show none, and this is no Jetson"]
    if library:
        found.append(f"TensorRT {library} (libnvinfer)")
    missing = []
    for module in _MODULES.get(target.kind, ()):
        version = version_of(module)
        if version is not None:
            found.append(f"Python module {module} {version}")
        else:
            missing.append(f"Python module {module}: {_REMEDIES[module, target.kind]}")
    if target.kind == "jetson" and not library:
        missing.append("libnvinfer: sudo apt install nvidia-jetpack")
    return Detection(target, tuple(found), tuple(missing))


_MODULES = {"jetson": ("tensorrt",), "rtx": ("tensorrt_rtx",), "cuda": ("tensorrt",)}
_REMEDIES = {
    ("tensorrt", "jetson"): "sudo apt install python3-libnvinfer, in a venv with --system-site-packages",
    ("tensorrt_rtx", "rtx"): "pip install 'edgemm[rtx]'",
    ("tensorrt", "cuda"): "pip install 'edgemm[tensorrt]'",
}
_BOARDS = {
    "Orin Nano": "jetson-orin-nano",
    "Orin NX": "jetson-orin-nx",
    "AGX Orin": "jetson-orin-agx",
    "Thor": "jetson-thor",
    "Xavier": "jetson-xavier",
    "Orin": "jetson-orin-nano",
}
"""Part of the name in the device tree -> target; an Orin of unknown kind counts as the smallest."""

_RELEASES = {"36": "jetson-orin-nano", "38": "jetson-thor"}
"""L4T release -> the smallest of the boards that it is for, where it is for one kind of processor."""


def _jetson_target(jetson: Jetson) -> tuple[Target, list[str]]:
    versions = [f"L4T {jetson.l4t}" if jetson.l4t else "no /etc/nv_tegra_release (a container?)"]
    versions += [f"JetPack {jetson.jetpack}"] if jetson.jetpack else []
    found = [f"{jetson.model} ({', '.join(versions)})"]
    name = next((target for part, target in _BOARDS.items() if part.lower() in jetson.model.lower()), None)
    if name is None and jetson.l4t:
        name = _RELEASES.get(jetson.l4t.split(".")[0])
        found += [f"told by L4T {jetson.l4t} alone: taken for the smallest board that has it"] if name else []
    if name is None:
        found.append("a Jetson that this version of edgemm does not know; its processor is the target")
        return _target("cpu"), found
    return _target(name), found


def _gpu_target(cards: tuple[Gpu, ...]) -> tuple[Target, list[str]]:
    """Returns the target of the first GPU, in nvidia-smi's order."""
    found = [f"{c.name}, compute capability {c.sm // 10}.{c.sm % 10}, {c.memory_mb:,} MiB" for c in cards]
    first = cards[0].sm
    if first in RTX_SMS:
        return _target_of_sm(f"sm{first}", first), found
    found.append(f"TensorRT-RTX does not build for SM {first}")
    return _target("ort-tensorrt"), found


def find_libnvinfer(root: Path = Path("/")) -> str | None:
    """Returns the version of the system's TensorRT library, as its file name says, or None without one."""
    folders = ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64", "usr/local/lib")
    versions = [
        tuple(map(int, match[1].split(".")))
        for folder in folders
        for path in root.glob(f"{folder}/libnvinfer.so.*")
        if (match := re.fullmatch(r"libnvinfer\.so\.(\d+(?:\.\d+)*)", path.name))
    ]
    return ".".join(map(str, max(versions))) if versions else None


def module_version(module: str) -> str | None:
    """Returns the version of an installed module without importing it, or None; a folder of stubs is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    for name in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(name)
    return "of unknown version"


def find_gpus() -> tuple[Gpu, ...]:
    """Returns the NVIDIA GPUs of this machine: from nvidia-smi, else from NVML, else none."""
    smi = shutil.which("nvidia-smi")
    return (ask_nvidia_smi(smi) if smi else ()) or ask_nvml()


def ask_nvidia_smi(command: str) -> tuple[Gpu, ...]:
    """Returns the GPUs that nvidia-smi lists; none when it fails or takes more than 10 s."""
    query = [command, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    gpus = []
    for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True):
        if len(row) == 3 and re.fullmatch(r"\d+\.\d", row[1].strip()):
            memory = int(row[2]) if row[2].strip().isdigit() else 0
            gpus.append(Gpu(row[0].strip(), int(row[1].strip().replace(".", "")), memory))
    return tuple(gpus)


def ask_nvml(library: str = "libnvidia-ml.so.1") -> tuple[Gpu, ...]:
    """Returns the GPUs that NVML lists (NVML API Reference, Device Queries); none where it does not start."""
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2() != 0:
            return ()
    except (OSError, AttributeError):
        return ()
    number = ctypes.c_uint(0)
    gpus = []
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)) == 0:
        for index in range(number.value):
            device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            major, minor, memory = ctypes.c_int(0), ctypes.c_int(0), (ctypes.c_ulonglong * 3)()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
                continue
            nvml.nvmlDeviceGetName(device, name, 96)
            nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
            label = name.value.decode(errors="replace")
            gpus.append(Gpu(label, major.value * 10 + minor.value, memory[0] // 2**20))
    nvml.nvmlShutdown()
    return tuple(gpus)
