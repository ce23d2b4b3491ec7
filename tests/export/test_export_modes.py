"""Models that were saved in a mode or with a memory that a graph cannot have."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from export_nets import array, export, save, tensor
from torch import nn

from edgemm.errors import ExportError
from edgemm.export.model import ModelSource
from edgemm.tensors import BATCH


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(image)).mean((2, 3)) + audio)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average.mul_(0.5).add_(x.mean(0))  # type: ignore[operator, union-attr]
        return x + self.average


def test_a_program_saved_in_training_mode_is_converted_in_eval_mode(tmp_path: Path) -> None:
    model = Trained().train()
    model(tensor(16, 1, 8, 8), tensor(16, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (tensor(4, 1, 8, 8), tensor(4, 4))), tmp_path / "m.pt2")
    samples = [{"image": array(1, 8, 8, seed=i), "audio": array(4, seed=i)} for i in range(4)]
    result = export(ModelSource(tmp_path / "m.pt2"), samples)
    assert any("2 dropout or batch norm layers were set to eval mode" in n for n in result.notes)
    assert result.graph.io.batch == BATCH
    model.eval()
    from edgemm.export.verify import OrtRunner

    with torch.no_grad():
        expected = model(tensor(5, 1, 8, 8), tensor(5, 4)).numpy()
    got = OrtRunner(result.graph.model)({"image": array(5, 1, 8, 8), "audio": array(5, 4)})
    np.testing.assert_allclose(got["output"], expected, atol=1e-5)


@pytest.mark.parametrize("how", ["pt2", "torchscript", "pickle"])
def test_a_memory_in_a_buffer_is_named(how: str, tmp_path: Path) -> None:
    source = save(Remembers(), (tensor(2, 4),), tmp_path, how)
    with pytest.raises(ExportError, match="keeps a state in its buffer 'average'") as caught:
        export(source, [{"x": array(4, seed=i)} for i in range(3)])
    assert "--state" in caught.value.hint
