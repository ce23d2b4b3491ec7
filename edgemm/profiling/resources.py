"""What the runs take besides time: memory, energy, heat. Looked at before the model opens and after the runs."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemm.profiling.clocks import clocks_json
from edgemm.profiling.energy import ESTIMATE, find_meters, measure_energy
from edgemm.profiling.nvml import Nvml, find_gpu
from edgemm.profiling.thermal import look, temperature_json, throttling_json
from edgemm.runtime.latency import peak_memory


def resident_memory() -> int:
    """Returns the bytes that this process holds now; 0 where the kernel does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


class ResourceWatch:
    """Looks at the machine before, during and after the runs. Make it before the model is opened.

    Attributes:
        baseline: Bytes that this process held when it was made.
    """

    def __init__(self, root: Path = Path("/"), gpu: Callable[[], Nvml | None] = find_gpu) -> None:
        """Looks at the machine as it is now.

        Args:
            root: Folder that holds `sys`, `etc` and `var`; a test has its own.
            gpu: How to find the GPU.
        """
        self._root = root
        self._gpu = gpu()
        self.baseline = resident_memory()
        self._device_before = self._gpu.memory() if self._gpu else None
        self._before = look(root, self._gpu)
        self._steady = self._peak = 0
        self._device_steady: tuple[int, int] | None = None

    def warm(self) -> None:
        """Notes the memory of a model that has run: before records of many runs are kept beside it."""
        self._steady, self._peak = resident_memory(), peak_memory()
        self._device_steady = self._gpu.memory() if self._gpu else None

    @property
    def peak(self) -> int:
        """Bytes, the high-water mark of this process up to `warm`."""
        return self._peak

    def to_json(
        self, call: Callable[[], object] | None, modalities: Sequence[Mapping[str, Any]], *, on_gpu: bool
    ) -> dict[str, Any]:
        """Returns `edgemm.profiling.report.Resources`; measures the energy, where there is a meter.

        Args:
            call: One inference; None leaves the energy out.
            modalities: `edgemm.profiling.report.ModalityShare`, for the estimate per modality.
            on_gpu: Whether the model runs on the GPU.
        """
        gpu = self._gpu if on_gpu else None
        after = look(self._root, gpu)
        report: dict[str, Any] = {
            "memory": self._memory(on_gpu),
            "temperature": temperature_json(self._before, after),
            "throttling": throttling_json(self._before, after),
            "clocks": clocks_json(self._root, gpu),
        }
        if call is not None:
            report["energy"] = self._energy(gpu, call, modalities)
        return report

    def close(self) -> None:
        """Gives the GPU's library back."""
        if self._gpu is not None:
            self._gpu.close()

    def _memory(self, on_gpu: bool) -> dict[str, Any]:
        mebibyte = 2**20
        device: dict[str, Any] = {"unavailable": "the model runs on the CPU"}
        if on_gpu:
            device = {"unavailable": "no NVML" if self._gpu is None else f"{self._gpu.name} does not say"}
        if on_gpu and self._gpu and self._device_before and self._device_steady:
            device = {
                "device": self._gpu.name,
                "before_mb": self._device_before[0] / mebibyte,
                "used_mb": self._device_steady[0] / mebibyte,
                "total_mb": self._device_steady[1] / mebibyte,
            }
        return {
            "rss_before_mb": self.baseline / mebibyte,
            "rss_steady_mb": self._steady / mebibyte,
            "rss_peak_mb": self._peak / mebibyte,
            "device": device,
        }

    def _energy(
        self, gpu: Nvml | None, call: Callable[[], object], modalities: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        meters, reason = find_meters(self._root, gpu)
        if not meters:
            return {"unavailable": reason}
        found = dict(measure_energy(meters, call))
        if "unavailable" not in found and len(modalities) > 1:
            found["modalities"] = [
                {"name": m["name"], "estimate_mj": found["per_inference_mj"] * m["share"]} for m in modalities
            ]
            found["estimate"] = ESTIMATE
        return found
