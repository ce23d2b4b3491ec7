"""Its place puts this directory on the import path: tests in every folder import `builders`."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model and its data: model.pt2, model.pt (state_dict), net.py, calib.npz, eval.npz. Read only."""
    from fusion_nets import save

    return save(tmp_path_factory.mktemp("trained"))
