"""A trained model and its data, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from fusion_nets import save


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt2, model.pt, net.py, calib.npz, eval.npz."""
    return save(tmp_path_factory.mktemp("trained"))
