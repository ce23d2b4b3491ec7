"""An NVIDIA GPU as its driver sees it, by libnvidia-ml through ctypes: energy, memory, temperature, clocks.

Prototypes are those of `nvml.h`. A Jetson has no such library, or one that supports little of it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

from edgemm.errors import UnsupportedDeviceError

LIBRARY = "libnvidia-ml.so.1"

SLOWED = {
    0x04: "its power limit",
    0x08: "a hardware slowdown",
    0x20: "its temperature (software)",
    0x40: "its temperature (hardware)",
    0x80: "an external power brake",
}
"""Bits of `nvmlDeviceGetCurrentClocksThrottleReasons` that mean that the GPU slows itself down."""

_PROTOTYPES = {
    "nvmlInit_v2": (),
    "nvmlShutdown": (),
    "nvmlDeviceGetCount_v2": (POINTER(c_uint),),
    "nvmlDeviceGetHandleByIndex_v2": (c_uint, POINTER(c_void_p)),
    "nvmlDeviceGetName": (c_void_p, c_char_p, c_uint),
    "nvmlDeviceGetTotalEnergyConsumption": (c_void_p, POINTER(c_ulonglong)),
    "nvmlDeviceGetMemoryInfo": (c_void_p, c_void_p),
    "nvmlDeviceGetTemperature": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetCurrentClocksThrottleReasons": (c_void_p, POINTER(c_ulonglong)),
    "nvmlDeviceGetClockInfo": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetMaxClockInfo": (c_void_p, c_int, POINTER(c_uint)),
}


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Nvml:
    """One GPU. What the driver does not support is None.

    Attributes:
        name: Of the GPU.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        """Opens the library and the GPU that CUDA programs see first.

        Raises:
            UnsupportedDeviceError: There is no library, or no GPU.
        """
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise UnsupportedDeviceError(
                f"no NVML: {library} is not there.", hint="it comes with NVIDIA's driver"
            ) from error
        self._check("nvmlInit_v2")
        self._device = c_void_p()
        try:
            self._check("nvmlDeviceGetHandleByIndex_v2", self._index(), byref(self._device))
            buffer = ctypes.create_string_buffer(96)
            self._check("nvmlDeviceGetName", self._device, buffer, len(buffer))
        except UnsupportedDeviceError:
            self.close()
            raise
        self.name = buffer.value.decode(errors="replace")

    def close(self) -> None:
        """Gives the library back."""
        self._call("nvmlShutdown")

    def energy(self) -> float | None:
        """Returns the joules since the driver was loaded (Volta and newer)."""
        found = self._number("nvmlDeviceGetTotalEnergyConsumption", c_ulonglong())
        return None if found is None else found * 1e-3

    def memory(self) -> tuple[int, int] | None:
        """Returns the bytes in use by everything on the GPU, and those that it has."""
        found = _Memory()
        if self._call("nvmlDeviceGetMemoryInfo", self._device, byref(found)):
            return None
        return int(found.used), int(found.total)

    def temperature(self) -> float | None:
        """Returns degrees Celsius."""
        found = c_uint()
        return (
            None if self._call("nvmlDeviceGetTemperature", self._device, 0, byref(found)) else float(found.value)
        )

    def slowed(self) -> tuple[str, ...] | None:
        """Returns why the GPU runs below its clocks now; empty if it does not."""
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", c_ulonglong())
        return None if bits is None else tuple(reason for bit, reason in SLOWED.items() if bits & bit)

    def clock(self, *, highest: bool = False) -> float | None:
        """Returns the clock of the SMs in MHz: now, or the highest."""
        found = c_uint()
        name = "nvmlDeviceGetMaxClockInfo" if highest else "nvmlDeviceGetClockInfo"
        return None if self._call(name, self._device, 1, byref(found)) else float(found.value)

    def _index(self) -> int:
        """Returns the index of the first GPU that `CUDA_VISIBLE_DEVICES` lets programs see, by PCI order."""
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        count = self._number("nvmlDeviceGetCount_v2", c_uint(), device=False) or 0
        return int(first) if first.isdigit() and int(first) < count else 0

    def _number(self, name: str, value: Any, *, device: bool = True) -> int | None:
        given = (self._device, byref(value)) if device else (byref(value),)
        return None if self._call(name, *given) else int(value.value)

    def _call(self, name: str, *arguments: Any) -> int:
        """Returns the function's `nvmlReturn_t`; -1 where the library has no such function."""
        function = getattr(self._library, name, None)
        if function is None:
            return -1
        function.argtypes, function.restype = _PROTOTYPES[name], c_int
        return int(function(*arguments))

    def _check(self, name: str, *arguments: Any) -> None:
        code = self._call(name, *arguments)
        if code:
            raise UnsupportedDeviceError(
                f"NVML: {name} gave {code}.", hint="is there a GPU, and does nvidia-smi show it?"
            )


class NvmlEnergy:
    """The energy of a GPU: an `edgemm.profiling.meters.Meter`."""

    def __init__(self, gpu: Nvml) -> None:
        """Reads `gpu`."""
        self._gpu = gpu
        self.name = f"NVML {gpu.name}"
        self.covers = "GPU"

    def joules(self) -> float | None:
        """Returns the joules since the driver was loaded, or None where it does not count them."""
        return self._gpu.energy()

    def watts(self) -> None:
        """Returns None."""


def find_gpu(library: str = LIBRARY) -> Nvml | None:
    """Returns the GPU, or None where NVML shows none."""
    try:
        return Nvml(library)
    except UnsupportedDeviceError:
        return None
