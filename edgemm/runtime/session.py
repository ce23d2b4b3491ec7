"""What every engine session can do, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgemm.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How an engine is opened.

    Attributes:
        threads: Intra-op threads; 0 lets the backend decide.
        spinning: Whether idle pool threads may spin between runs (several sessions in one process fight).
        profile_to: Prefix of the backend's own per-node profile, or None.
    """

    threads: int = 0
    spinning: bool = False
    profile_to: str | None = None


class EngineSession(Protocol):
    """One engine, opened. `run` may be called from several threads at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        """Opens the engine file.

        Raises:
            BackendError: The file is no engine of this backend, or the device cannot run it.
        """
        ...

    def run(self, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the outputs in the order of `outputs`. `feed` holds exactly the engine's inputs."""
        ...

    def close(self) -> None:
        """Frees what the engine holds; a second call does nothing."""
        ...
