"""A two-camera model, calibrated for TensorRT."""

from __future__ import annotations

import pytest
import torch
from plan_models import Prepared, TwoCameras, Wide, prepared


@pytest.fixture(scope="session")
def cameras() -> Prepared:
    """Graph, stages and ranges of `TwoCameras`."""
    return prepared(TwoCameras(), (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)), "left", "right")


@pytest.fixture(scope="session")
def wide() -> Prepared:
    """Graph, stages and ranges of `Wide`."""
    return prepared(Wide(), (torch.rand(2, 4, 128), torch.rand(2, 4, 128)), "a", "b")
