"""transformers models by torch.export: the same bundle as from weights and factory, without running any code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_models import edgemm, load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["clip", "siglip", "blip", "clap", "lxmert", "whisper"])
def test_exported_program_runs_as_torch_does(tmp_path: Path, name: str) -> None:
    from recipes.datasets.cache import save_arrays
    from recipes.models import hf_tiny
    from recipes.models.saving import save_program

    model, data = hf_tiny.FACTORIES[name](), hf_tiny.sample_inputs(name, 40)
    save_program(model, data, tmp_path / "model.pt2")
    save_arrays(tmp_path / "data.npz", data)
    bundle, feed = str(tmp_path / "model.edgemm"), ("--calib", str(tmp_path / "data.npz"))
    done = edgemm("convert", str(tmp_path / "model.pt2"), *feed, "-o", bundle, "--precision", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dynamic"]["fixed"] == []
    done = edgemm("run", bundle, "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out.npz"))
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = model(**{n: torch.from_numpy(a) for n, a in data.items()})
    outputs = load(tmp_path / "out.npz")
    assert outputs.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_allclose(outputs[key], tensor.numpy(), rtol=0, atol=1e-4)
