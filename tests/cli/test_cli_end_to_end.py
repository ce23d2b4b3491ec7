"""A torch model through the verbs as a user goes: convert, inspect, run, profile."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgemm.cli import main


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.gyro = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.head = nn.Linear(24, 4)

    def forward(self, image: torch.Tensor, gyro: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.image(image), self.gyro(gyro)], 1))


@dataclass
class Made:
    folder: Path
    module: nn.Module
    data: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model file, its data and its float32 bundle."""
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    module = Net().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module,
        (torch.randn(2, 1, 8, 8), torch.randn(2, 6)),
        dynamic_shapes={"image": {0: batch}, "gyro": {0: batch}},
    )
    torch.export.save(program, folder / "net.pt2")
    random = np.random.default_rng(0)
    data = {
        "image": random.normal(size=(40, 1, 8, 8)).astype(np.float32),
        "gyro": random.normal(size=(40, 6)).astype(np.float32),
    }
    np.savez(folder / "data.npz", **data)
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main(
            [
                *("convert", str(folder / "net.pt2"), "--calib", str(folder / "data.npz")),
                *("-o", str(folder / "net.edgemm"), "--precision", "fp32", "--layout", "staged"),
            ]
        )
    assert not ended.value.code, errors.getvalue()
    return Made(folder, module, data)


def test_run_gives_what_torch_gives(edgemm, made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    result = edgemm("run", made.folder / "net.edgemm", "--data", made.folder / "data.npz", "-o", out, "--batch", 7)
    assert result.code == 0, result.err
    with torch.no_grad():
        want = made.module(torch.from_numpy(made.data["image"]), torch.from_numpy(made.data["gyro"])).numpy()
    with np.load(out) as written:
        (name,) = written.files
        np.testing.assert_allclose(written[name], want, rtol=1e-4, atol=1e-5)


def structure(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(s["name"], s["modalities"], s["role"], s["nodes"], s["parameters"]) for s in report["stages"]]


def test_inspect_says_the_same_of_model_and_bundle(edgemm, made: Made) -> None:
    bundle = edgemm("inspect", made.folder / "net.edgemm", "--json").json
    result = edgemm("inspect", made.folder / "net.pt2", "--calib", made.folder / "data.npz", "--json")
    assert result.code == 0, result.err
    model = result.json
    assert model["kind"] == "exported-program"
    assert structure(model) == structure(bundle)
    assert [s["name"] for s in model["stages"]] == ["image", "gyro", "fusion"]
    assert model["inputs"] == bundle["inputs"]
    assert model["joins"] == bundle["joins"]
    assert model["parameters"] == bundle["parameters"] == sum(p.numel() for p in made.module.parameters())
    assert model["parity"]["max_abs"] < 1e-4
    assert all(i["reason"] for i in model["inputs"])
    assert all(s["precision"] == {"cpu-fp32": {"fp32": s["nodes"]}} for s in bundle["stages"])
    image = model["stages"][0]["weights"]["float32"]
    assert image == {"elements": 80, "bytes": 320}


def test_inspect_as_text(wide_terminal: None, edgemm, made: Made) -> None:
    result = edgemm("inspect", made.folder / "net.pt2", "--modality", "gyro=motion")
    assert result.code == 0, result.err
    assert "exported program · opset" in result.out
    assert "gyro ─▶ motion encoder (2 nodes, 112)" in result.out
    assert "declared" in result.out
    assert "dynamic  'batch': image axis 0, gyro axis 0" in result.out
    assert "note: parity was checked on synthetic inputs" in result.out
    for text in edgemm("inspect", made.folder / "net.edgemm").out, result.out:
        assert max(map(len, text.splitlines()[2:])) <= 120


def test_unknown_modality_names_the_input(edgemm, made: Made) -> None:
    result = edgemm("inspect", made.folder / "net.pt2", "--modality", "gyr=motion")
    assert result.code == 1
    assert "no input 'gyr' in this model (inputs: image, gyro)" in result.err
    assert "did you mean 'gyro'?" in result.err


def test_profile(edgemm, made: Made) -> None:
    result = edgemm(
        "profile",
        made.folder / "net.edgemm",
        "--data",
        made.folder / "data.npz",
        "--runs",
        70,
        "--batch",
        3,
        "--json",
    )
    assert result.code == 0, result.err
    report = result.json
    assert [s["name"] for s in report["stages"]] == ["image", "gyro", "fusion"]
    assert (report["batch"], report["samples"]) == (3, 40)
    assert report["end_to_end"]["p90_ms"] is not None
