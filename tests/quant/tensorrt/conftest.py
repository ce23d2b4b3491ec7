"""A two-camera model, calibrated for TensorRT."""

from __future__ import annotations

import pytest
import torch
from plan_models import Prepared, TwoCameras, prepared


@pytest.fixture(scope="session")
def cameras() -> Prepared:
    """Graph, stages and ranges of `TwoCameras`."""
    return prepared(TwoCameras(), (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)), "left", "right")
