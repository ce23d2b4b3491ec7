"""Conversions that several tests look at, each made once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.pipeline import ConvertResult, convert

ROOT = Path(__file__).resolve().parents[2]
Sections = dict[str, Any]


@dataclass(frozen=True)
class Called:
    """What a command line in a process of its own gave."""

    bundle: Path
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def few_rounds() -> Iterator[None]:
    """Latency is measured in fewer rounds: these tests ask whether it is measured, not how well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemm.runtime.turns._MAX_ROUNDS", 8)
        patch.setattr("edgemm.runtime.turns._MIN_PACED", 5)
        patch.setattr("edgemm.pipeline.race._ROUNDS", 3)
        patch.setattr("edgemm.runtime.turns._LONGEST", 0.01)
        yield


@pytest.fixture(scope="session")
def data(trained_folder: Path) -> Sections:
    """The `data` section: calibration and evaluation files, and the name of the labels."""
    return {
        "calib": str(trained_folder / "calib.npz"),
        "eval": str(trained_folder / "eval.npz"),
        "label": "label",
    }


@pytest.fixture(scope="session")
def fp32(trained_folder: Path, data: Sections, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    """The .pt2 as one float engine."""
    recipe = {"model": {"path": trained_folder / "model.pt2"}, "data": data}
    output = tmp_path_factory.mktemp("fp32") / "fp32.edgemm"
    return convert(recipe | {"quantize": {"precision": "fp32"}, "layout": "whole"}, output)


@pytest.fixture(scope="session")
def model_onnx(fp32: ConvertResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as an .onnx file, which converts faster than the .pt2."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    path.write_bytes((fp32.path / fp32.shipped.engines[0].file).read_bytes())
    return path


@pytest.fixture(scope="session")
def int8(trained_folder: Path, data: Sections, tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    """The .pt2 in int8, one engine per stage."""
    recipe = {"model": {"path": trained_folder / "model.pt2"}, "data": data, "evaluate": {"max_drop": 0.05}}
    output = tmp_path_factory.mktemp("int8") / "model.edgemm"
    return convert(
        recipe | {"quantize": {"precision": "int8"}, "layout": "staged", "engine": "onnxruntime"}, output
    )


@pytest.fixture(scope="session")
def int8_called(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Called:
    """The same by the command line in a fresh process with another hash seed, with `--json`."""
    folder = tmp_path_factory.mktemp("int8cli")
    command = [sys.executable, "-m", "edgemm", "convert", str(trained_folder / "model.pt2"), "-o", "model.edgemm"]
    command += ["--calib", str(trained_folder / "calib.npz"), "--eval", str(trained_folder / "eval.npz")]
    command += ["--label", "label", "--precision", "int8", "--layout", "staged", "--max-drop", "0.05", "--json"]
    command += ["--engine", "onnxruntime"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return Called(folder / "model.edgemm", done.stdout, done.stderr)


@pytest.fixture
def convert_onnx(model_onnx: Path, data: Sections, tmp_path: Path) -> Callable[..., ConvertResult]:
    """Converts the .onnx with the given sections; float and in one piece unless they say otherwise."""

    def call(name: str = "out.edgemm", **sections: Any) -> ConvertResult:
        given = {
            "model": {"path": model_onnx},
            "data": data,
            "quantize": {"precision": "fp32"},
            "layout": "whole",
            "engine": "onnxruntime",
        }
        return convert(given | sections, tmp_path / name)

    return call


@pytest.fixture(scope="session")
def evaluation(trained_folder: Path) -> dict[str, np.ndarray]:
    """The arrays of eval.npz."""
    with np.load(trained_folder / "eval.npz") as file:
        return dict(file)
