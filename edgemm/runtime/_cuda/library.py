"""libcudart and libcuda through ctypes: found by name, every function with its prototype (CUDA 11 to 13).

Prototypes are those of `cuda_runtime_api.h` and `cuda.h`. Handles (streams, events, graphs) and device addresses
travel as integers.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import platform
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

from edgemm.errors import UnsupportedDeviceError

RUNTIME_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
"""Names of the CUDA runtime, newest first. One that is newer than the driver is passed over."""

DRIVER_NAMES = ("libcuda.so.1", "libcuda.so", "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so")
"""Names of the driver's library; it comes with the driver, on a Jetson with JetPack."""

_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
"""Where CUDA lies when the loader does not know it."""

_WHEELS = "nvidia/*/lib"
"""Where NVIDIA's wheels (nvidia-cuda-runtime, ...) keep their libraries, below a folder of `sys.path`."""

RUNTIME = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaGetDevice": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaDeviceSynchronize": (),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaGetLastError": (),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaHostGetDevicePointer": (POINTER(c_void_p), c_void_p, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cudaEventCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventQuery": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}
"""Functions that every CUDA runtime from 11.0 on has, with their arguments. All give a `cudaError_t`."""

INSTANTIATE = (POINTER(c_void_p), c_void_p, c_ulonglong)
"""`cudaGraphInstantiateWithFlags`, from CUDA 11.4 on."""

INSTANTIATE_11 = (POINTER(c_void_p), c_void_p, POINTER(c_void_p), c_char_p, c_size_t)
"""`cudaGraphInstantiate` before CUDA 12, which took away the last three arguments and put in flags."""

DRIVER = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
}
"""Functions of the driver's library; all give a `CUresult`."""

INSUFFICIENT_DRIVER, NO_DEVICE, INITIALIZATION = 35, 100, 3
"""Codes of a machine that has no usable GPU, or of a runtime that is newer than its driver."""

_HINT = "install the NVIDIA driver, on a Jetson JetPack; `nvidia-smi` tells whether it works"


@functools.cache
def load_runtime() -> Any:
    """Returns the first CUDA runtime that finds a GPU.

    Raises:
        UnsupportedDeviceError: No library is there, or none finds a driver and a GPU.
    """
    refused = ""
    for name in _candidates():
        try:
            library = bind(ctypes.CDLL(name), RUNTIME)
        except (OSError, AttributeError):
            continue
        count = c_int()
        code = library.cudaGetDeviceCount(count)
        if code == 0 and count.value > 0:
            return library
        refused = refused or f"{Path(name).name}: {_explain(library, code)}"
    if refused:
        raise UnsupportedDeviceError(f"CUDA finds no GPU here ({refused}).", hint=_HINT)
    raise UnsupportedDeviceError(
        f"CUDA's runtime library is not found ({', '.join(RUNTIME_NAMES)}).",
        hint=_runtime_hint(platform.machine()),
    )


def _runtime_hint(arch: str) -> str:
    """Returns where the CUDA runtime comes from: on arm64 it is a Jetson as a rule, whose JetPack has it."""
    if arch.lower() in ("aarch64", "arm64"):
        return (
            "on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack; elsewhere install CUDA, or add "
            "its folder to LD_LIBRARY_PATH"
        )
    return "install CUDA or `pip install nvidia-cuda-runtime-cu12`, or add its folder to LD_LIBRARY_PATH"


@functools.cache
def load_driver() -> Any:
    """Returns the driver's library.

    Raises:
        UnsupportedDeviceError: It is not there.
    """
    for name in DRIVER_NAMES:
        try:
            return bind(ctypes.CDLL(name), DRIVER)
        except (OSError, AttributeError):
            continue
    raise UnsupportedDeviceError(f"the CUDA driver is not found ({DRIVER_NAMES[0]}).", hint=_HINT)


def bind(library: Any, prototypes: dict[str, tuple[Any, ...]]) -> Any:
    """Returns `library` with `prototypes` set on its functions.

    Raises:
        AttributeError: It lacks one.
    """
    for name, arguments in prototypes.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    if prototypes is RUNTIME:
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            function = getattr(library, name)
            function.argtypes, function.restype = (c_int,), c_char_p
        library.cudaGraphInstantiate.restype = c_int
        if hasattr(library, "cudaGraphInstantiateWithFlags"):
            library.cudaGraphInstantiateWithFlags.argtypes = INSTANTIATE
            library.cudaGraphInstantiateWithFlags.restype = c_int
        else:
            library.cudaGraphInstantiate.argtypes = INSTANTIATE_11
    return library


def instantiate(library: Any, graph: int) -> tuple[int, int]:
    """Returns the error code and the executable graph of `graph`, with the call that this CUDA has."""
    made = c_void_p()
    if hasattr(library, "cudaGraphInstantiateWithFlags"):
        code = library.cudaGraphInstantiateWithFlags(made, graph, 0)
    else:
        code = library.cudaGraphInstantiate(made, graph, None, None, 0)
    return code, made.value or 0


def error_name(library: Any, code: int) -> str:
    """Returns for example `"cudaErrorMemoryAllocation"`."""
    return bytes(library.cudaGetErrorName(code) or b"unknown error").decode(errors="replace")


def error_text(library: Any, code: int) -> str:
    """Returns for example `"out of memory"`."""
    return bytes(library.cudaGetErrorString(code) or b"no description").decode(errors="replace")


def _explain(library: Any, code: int) -> str:
    if code == 0:
        return "no GPU"
    versions = []
    for name in ("cudaRuntimeGetVersion", "cudaDriverGetVersion"):
        number = c_int()
        getattr(library, name)(number)
        versions.append(f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else "none")
    return (
        f"{error_name(library, code)}: {error_text(library, code)}; runtime for CUDA {versions[0]}, "
        f"driver for {versions[1]}"
    )


def _candidates() -> Iterator[str]:
    """Yields names and paths of CUDA runtimes: what the loader knows, CUDA's folder, wheels, other versions."""
    yield from RUNTIME_NAMES
    short = {Path(name).name for name in RUNTIME_NAMES}
    folders = [Path(folder) for folder in _FOLDERS]
    folders += [f for entry in sys.path if entry for f in sorted(Path(entry).glob(_WHEELS))]
    for folder in folders:
        for file in sorted(folder.glob("libcudart.so*"), reverse=True):
            if file.name in short:
                yield str(file)
    found = ctypes.util.find_library("cudart")  # takes long: it runs other programs
    if found:
        yield found
