"""What every engine session can do, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemm.bundle import Schedule
from edgemm.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How an engine is opened.

    Attributes:
        threads: Intra-op threads; 0 lets the backend decide.
        spinning: Whether idle pool threads may spin between runs (several sessions in one process fight).
        profile_to: Prefix of the files into which an engine writes the time of each layer until it closes (see
            `profile_prefix`), or None: ONNX Runtime its own trace, and the graph as it runs it as `PREFIX.onnx`;
            OpenVINO and TensorRT `PREFIX.json`.
        profile_skip: First runs that such a profile leaves out, where the backend adds up.
        precision: Arithmetic of what the graph leaves in float32: `"f32"`, or `"bf16"` where the backend and the
            processor have it.
        device: Index of the GPU, for backends that use one.
        device_outputs: Outputs that stay on the GPU: `run` gives them as a `DeviceArray`, without waiting for it.
        cuda_graphs: Whether TensorRT's launches are recorded as a CUDA graph and replayed while shapes and
            addresses stay as they are.
        weight_streaming: Bytes of weights that may be on the GPU, of a TensorRT engine that was built for weight
            streaming; None leaves all of them there.
        cache: Folder for what a backend compiles on this machine and may throw away, `BUNDLE/cache`; None keeps
            nothing.
        plan: `EngineEntry.options` of the engine: optimization profiles, precisions, options of the builder.
        optimize: Whether ONNX Runtime may rewrite the graph. Not one that was planned for TensorRT: it would move
            Q/DQ and casts, and give other answers.
        schedule: How the engines of a variant share the cores of a CPU; None is what was measured (see
            `edgemm.runtime.tune`), on this machine or at the conversion. It decides about `spinning`, too.
    """

    threads: int = 0
    spinning: bool = False
    profile_to: str | None = None
    profile_skip: int = 0
    precision: str = "f32"
    device: int = 0
    device_outputs: frozenset[str] = frozenset()
    cuda_graphs: bool = False
    weight_streaming: int | None = None
    cache: Path | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    optimize: bool = True
    schedule: Schedule | None = None

    def for_engine(self, options: Mapping[str, Any]) -> SessionOptions:
        """Returns these options with an engine's own in a bundle.

        Args:
            options: `threads` is the most that the engine profits from: it never raises what the caller gave.
                `precision` is taken as it is. With a `module` the graph is TensorRT's.
        """
        most = int(options.get("threads", 0))
        threads = min(most, self.threads) if most and self.threads else most or self.threads
        precision = str(options.get("precision", self.precision))
        optimize = self.optimize and "module" not in options
        return replace(self, threads=threads, precision=precision, plan=options, optimize=optimize)

    def profile_prefix(self, engine: Path) -> str:
        """Returns the prefix of the profile of one engine file, one of several that are open at once."""
        return f"{self.profile_to}-{engine.name}"


class EngineSession(Protocol):
    """One engine, opened. `run` may be called from several threads at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        """Opens the engine file.

        Raises:
            BackendError: The file is no engine of this backend.
            UnsupportedDeviceError: This machine lacks what the engine asks for.
            MissingExtraError: The backend is not installed.
        """
        ...

    def run(self, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the outputs in the order of `outputs`. `feed` holds exactly the engine's inputs."""
        ...

    def close(self) -> None:
        """Frees what the engine holds; a second call does nothing."""
        ...
