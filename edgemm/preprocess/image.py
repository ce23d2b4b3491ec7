"""Steps for images: `[batch, height, width, channels]` in uint8 as cameras and decoders give them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgemm.preprocess.step import refuse
from edgemm.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class BgrToRgb:
    """Reverses the order of three channels, as OpenCV gives them: BGR to RGB, or RGB to BGR."""

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the images `[B, H, W, 3]` with their channels the other way round."""
        return np.ascontiguousarray(batch[..., ::-1])

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what goes in.

        Raises:
            DataError: It is no image with three channels in its last axis.
        """
        if len(spec.shape) != 4 or spec.shape[3] != 3:
            raise refuse(self, spec, "images [batch, height, width, 3]", "put it before steps that move channels")
        return replace(spec)
