"""Engines that a graph may run on: backend, threads, precision of the float part. They compete by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgemm._optional import installed
from edgemm.errors import BackendError
from edgemm.rewrite.prepare import BATCHED

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
TENSORRT = "tensorrt"
"""Backend of engines for NVIDIA targets: nothing runs them here, so they do not compete."""

NVIDIA = {"tensorrt-rtx": TENSORRT, "tensorrt": TENSORRT, "ort-tensorrt": "ort-tensorrt", "ort-cuda": "ort-cuda"}
"""First backend of an NVIDIA target in the catalogue -> the one that its engines have in a bundle."""
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A way to run a graph.

    Attributes:
        backend: Name in `edgemm.runtime.registry`.
        threads: Most threads inside one operator; None leaves it to whoever opens the session.
        precision: `"f32"`, or `"bf16"` for what is not integer.
        batched: Whether encoders that share weights run as one batch; it is in the graph, not in the manifest.
    """

    backend: str = ONNXRUNTIME
    threads: int | None = None
    precision: str = "f32"
    batched: bool = False

    @property
    def exact(self) -> bool:
        """Whether a float graph keeps its float32 answers."""
        return self.precision == "f32"

    @property
    def preparation(self) -> str:
        """What `edgemm.rewrite.prepare` calls this backend."""
        target = "cpu" if self.backend == ONNXRUNTIME else self.backend
        return target + BATCHED if self.batched else target

    @property
    def options(self) -> Mapping[str, Any]:
        """What the manifest keeps: only what differs from the backend's default."""
        options: dict[str, Any] = {}
        if self.threads is not None:
            options["threads"] = self.threads
        if not self.exact:
            options["precision"] = self.precision
        return options

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        batched = ", one batch" if self.batched else ""
        return f"{self.backend}{'' if self.exact else ' ' + self.precision}{threads}{batched}"


def engine_kinds(engine: str, threads: int) -> tuple[EngineKind, ...]:
    """Returns the kinds that this machine can run, the plainest first, each again with encoders in one batch.

    Args:
        engine: `"auto"`, `"onnxruntime"` or `"openvino"`.
        threads: What the user asked for; 1 leaves nothing to choose.

    Raises:
        BackendError: The engine that was asked for is not installed.
    """
    if engine != AUTO and not installed(engine):
        raise BackendError(
            f"the engine '{engine}' is not installed.",
            hint=f"pip install 'edgemm[{'cpu' if engine == ONNXRUNTIME else engine}]', or use --engine auto",
        )
    caps: tuple[int | None, ...] = (None,) if threads == 1 else (None, 1)
    kinds = []
    if engine in (AUTO, ONNXRUNTIME):
        kinds += [EngineKind(ONNXRUNTIME, cap) for cap in caps]
    if engine in (AUTO, OPENVINO) and installed(OPENVINO):
        from edgemm.runtime.openvino import capabilities

        kinds += [EngineKind(OPENVINO, cap) for cap in caps]
        if "BF16" in capabilities():
            kinds += [EngineKind(OPENVINO, cap, "bf16") for cap in caps]
    return (*kinds, *(replace(kind, batched=True) for kind in kinds))
