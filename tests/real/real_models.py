"""What the tests of real models share: the command line in a process of its own, and the sources' own answers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # recipes/ and benchmarks/ stand beside the package

if TYPE_CHECKING:
    from benchmarks.fixtures import Fixture

Arrays = dict[str, np.ndarray]
Feed = Mapping[str, np.ndarray]


def edgemm(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the command line tool to its end, whatever that is."""
    command = [sys.executable, "-m", "edgemm", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


@dataclass(frozen=True)
class Converted:
    """A fixture, the bundle made of it, and what `convert --json` printed."""

    fixture: Fixture
    bundle: Path
    result: Mapping[str, Any]

    @property
    def shipped(self) -> Mapping[str, Any]:
        return next(v for v in self.result["variants"] if v["refused"] is None)

    def run(self, *options: str) -> Arrays:
        """Returns what `edgemm run` writes for the evaluation samples."""
        output = self.bundle.with_suffix(".npz")
        data = ("--data", str(self.fixture.eval), "-o", str(output), "--force")
        done = edgemm("run", str(self.bundle), *data, *options)
        assert done.returncode == 0, done.stderr
        return load(output)


Convert = Callable[[str, str], Converted]


def feeds(fixture: Fixture, inputs: list[str]) -> Iterator[Arrays]:
    """Yields the evaluation samples one by one, with the batch axis."""
    data = load(fixture.eval)
    for row in range(len(data[inputs[0]])):
        yield {name: data[name][row : row + 1] for name in inputs}


def source(fixture: Fixture) -> Callable[[Feed], Arrays]:
    """Returns the model as its own framework runs it: torch for .pt2 and .pt, ONNX Runtime for .onnx.

    A state that is not in the feed starts at zero.
    """
    if fixture.model.suffix == ".onnx":
        return _onnx_source(fixture.model)
    if fixture.model.suffix == ".pt2":
        module = torch.export.load(fixture.model).module()
    else:
        path, _, factory = fixture.options[fixture.options.index("--factory") + 1].rpartition(":")
        spec = importlib.util.spec_from_file_location("factory", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        module = getattr(loaded, factory)()
        module.load_state_dict(torch.load(fixture.model, weights_only=True))

    def run(feed: Feed) -> Arrays:
        with torch.inference_mode():
            outputs = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def _onnx_source(path: Path) -> Callable[[Feed], Arrays]:
    session = ort.InferenceSession(str(path))
    names = [o.name for o in session.get_outputs()]

    def run(feed: Feed) -> Arrays:
        states = {
            i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], np.float32)
            for i in session.get_inputs()
            if i.name not in feed
        }
        return dict(zip(names, session.run(None, dict(feed) | states), strict=True))

    return run
