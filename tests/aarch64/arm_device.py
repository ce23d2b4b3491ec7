"""Runs on the device: imports the device side, opens every case, writes its outputs, prints facts as JSON.

    python3 arm_device.py CASES NAME

CASES/*/ holds `case.json` and `calls.npz`; outputs go to CASES/*/NAME.npz. Needs edgemm's device side, numpy and
ONNX Runtime. Python 3.10 and later.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import pkgutil
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

AT_HWCAP, AT_HWCAP2 = 16, 26
HWCAP = {"asimddp": 1 << 20, "asimdhp": 1 << 10, "sve": 1 << 22}
HWCAP2 = {"i8mm": 1 << 13, "bf16": 1 << 14, "sme": 1 << 23}


def import_device_side() -> tuple[list[str], list[str]]:
    """Returns every module of the device side, imported, and what that has imported of other packages."""
    before = set(sys.modules)
    names = ["edgemm.errors", "edgemm._optional", "edgemm.tensors", "edgemm.compare"]
    for package in ("edgemm.bundle", "edgemm.runtime"):
        module = importlib.import_module(package)
        names += [package, *(m.name for m in pkgutil.walk_packages(module.__path__, f"{package}."))]
    for name in names:
        importlib.import_module(name)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    return names, sorted(new - set(sys.stdlib_module_names) - {"edgemm"})


def refused(call: Callable[[], Any]) -> dict[str, str] | None:
    """Returns the error of edgemm that `call` raises; None when it raises none."""
    from edgemm.errors import EdgemmError

    try:
        call()
    except EdgemmError as error:
        return {"type": type(error).__name__, "message": str(error), "hint": error.hint}
    return None


def refusals(cases: Path) -> dict[str, dict[str, str] | None]:
    """Returns what each thing says that needs an NVIDIA GPU or TensorRT."""
    from edgemm.runtime import SessionOptions, open_session
    from edgemm.runtime._trt.module import load_module
    from edgemm.runtime.cuda import find_gpu
    from edgemm.runtime.registry import session_class

    engine, options = cases / "none.engine", SessionOptions()
    calls: dict[str, Callable[[], Any]] = {
        "tensorrt": lambda: load_module("tensorrt"),
        "tensorrt_rtx": lambda: load_module("tensorrt_rtx"),
        "find_gpu": find_gpu,
    }
    for case in cases.glob("*/case.json"):
        asked = json.loads(case.read_text())
        bundle = case.parent / asked["path"]
        for target in asked["not_here"]:
            calls[target] = lambda bundle=bundle, target=target: open_session(bundle, target=target)
    for backend in ("tensorrt", "openvino", "ort-tensorrt", "ort-cuda", "ort-rtx"):
        calls[f"{backend} session"] = lambda backend=backend: session_class(backend)(engine, options)
    return {name: refused(call) for name, call in calls.items()}


def run_case(folder: Path, name: str) -> dict[str, Any]:
    """Returns what ran a case and how long it took; its outputs are in `folder/NAME.npz`."""
    from edgemm.runtime import open_session

    case = json.loads((folder / "case.json").read_text())
    with np.load(folder / "calls.npz", allow_pickle=False) as file:
        arrays = dict(file)
    start = time.perf_counter()
    outputs: dict[str, np.ndarray] = {}
    with open_session(folder / case["path"], threads=1) as session:  # threads that wait are slow when emulated
        opened = time.perf_counter()
        for at in range(case["calls"]):
            feed = {i: arrays[f"{at}/{i}"] for i in case["inputs"]}
            outputs |= {f"{at}/{output}": value for output, value in session.run(feed).items()}
        variant, choice = session.variant, session.choice
    np.savez(folder / f"{name}.npz", **outputs)
    return {
        "variant": variant.name,
        "backend": choice.backend if choice else variant.backend,
        "passed_over": [p.reason for p in choice.passed_over] if choice else [],
        "open_seconds": round(opened - start, 3),
        "run_seconds": round(time.perf_counter() - opened, 3),
    }


def instructions() -> list[str]:
    """Returns what the kernel, or the emulator in its place, says that the processor has."""
    if platform.machine() != "aarch64":
        return []
    libc = ctypes.CDLL(None)
    libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    first, second = libc.getauxval(AT_HWCAP), libc.getauxval(AT_HWCAP2)
    return [n for n, bit in HWCAP.items() if first & bit] + [n for n, bit in HWCAP2.items() if second & bit]


def main(cases: Path, name: str) -> None:
    """Prints facts as one JSON object."""
    logging.getLogger("edgemm").addHandler(logging.NullHandler())  # what was passed over is told in the facts
    modules, foreign = import_device_side()
    from edgemm.runtime.machine import describe_machine

    start = time.perf_counter()
    machine = describe_machine()
    facts: dict[str, Any] = {
        "modules": modules,
        "foreign": foreign,
        "machine": machine.to_json() | {"int8": machine.has_int8_dot_product, "summary": machine.summary()},
        "instructions": instructions(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "refusals": refusals(cases),
        "cases": {f.parent.name: run_case(f.parent, name) for f in sorted(cases.glob("*/case.json"))},
        "seconds": round(time.perf_counter() - start, 1),
    }
    import onnxruntime

    print(json.dumps(facts | {"onnxruntime": onnxruntime.__version__}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
