"""An engine that computes nothing: zeros of the declared shapes. For speed and shape tests, never for proof."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgemm.errors import BackendError, BundleError
from edgemm.runtime.session import SessionOptions
from edgemm.tensors import TensorSpec


class NullSession:
    """Gives zeros. Symbolic sizes take their value from the feed; one that no input has is 1."""

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        """Opens the engine file that `edgemm.backends.null` wrote; `options` change nothing.

        Raises:
            BackendError: The file is something else.
        """
        self.name = Path(engine).name
        self._closed = False
        try:
            data = json.loads(Path(engine).read_bytes())
            self.inputs = tuple(TensorSpec(n, d, tuple(s)) for n, d, s in data["inputs"])
            self.outputs = tuple(TensorSpec(n, d, tuple(s)) for n, d, s in data["outputs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"engine '{self.name}' is no engine of the null backend: {error!r}.",
                hint="open it with the backend that built it",
            ) from error

    def run(self, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Returns zeros in the order of `outputs`.

        Raises:
            BundleError: The session is closed.
        """
        if self._closed:
            raise BundleError(f"engine '{self.name}' is closed.", hint="open the session again")
        sizes = {dim: size for i in self.inputs for dim, size in zip(i.shape, feed[i.name].shape, strict=True)}
        return [
            np.zeros([d if isinstance(d, int) else sizes.get(d, 1) for d in o.shape], np.dtype(o.dtype))
            for o in self.outputs
        ]

    def close(self) -> None:
        """Closes the engine; a second call does nothing."""
        self._closed = True
