"""What the machine can do: that it is measured, and kept; and what bounds a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgemm.profiling import peaks as module
from edgemm.profiling.peaks import Peaks, copy_rate, machine_peaks, product_model, product_rate
from edgemm.profiling.roofline import COMPUTE, MEMORY, ridge, roof


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setattr(module, "SIZE", 128)
    monkeypatch.setattr(module, "COPIED", 2**20)


@pytest.mark.parametrize("integer", [False, True])
def test_product_is_a_product(integer: bool) -> None:
    model = onnx.load_from_string(product_model(64, integer=integer))
    onnx.checker.check_model(model, full_check=True)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    wanted = np.round(x / 0.05) * 0.05 @ (weight * 0.05) if integer else x @ weight
    np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_rates_are_measured(quick: None, backend: str) -> None:
    pytest.importorskip(backend)
    assert product_rate(backend, 1) > 1e6
    assert product_rate(backend, 1, integer=True) > 1e6
    assert copy_rate(1) > 1e6
    assert copy_rate(2) > 1e6


def test_measured_once_per_setting(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine_peaks("onnxruntime", 1, folder=tmp_path)
    assert first.version == onnxruntime.__version__
    asked = []

    def rate(backend: str, threads: int, precision: str = "f32", *, integer: bool = False) -> float:
        asked.append((threads, integer))
        return 7.0

    monkeypatch.setattr(module, "product_rate", rate)
    assert machine_peaks("onnxruntime", 1, folder=tmp_path) == first
    assert asked == []
    assert machine_peaks("onnxruntime", 2, folder=tmp_path).float_flops == 7.0
    assert asked == [(2, False), (2, True)]
    assert machine_peaks("onnxruntime", 1, folder=tmp_path) == first


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"key": 1}'])
def test_a_damaged_file_is_measured_again(quick: None, tmp_path: Path, content: str) -> None:
    (tmp_path / "peaks.json").write_text(content)
    assert machine_peaks("onnxruntime", 1, folder=tmp_path).float_flops > 0
    assert machine_peaks("onnxruntime", 1, folder=tmp_path).float_flops > 0


def test_a_folder_that_cannot_be_written(quick: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine_peaks("onnxruntime", 1, folder=tmp_path / "file" / "below").bandwidth > 0


PEAKS = Peaks("onnxruntime", "1", 1, "f32", 100e9, 400e9, 10e9, "2026-01-01T00:00:00Z")


def test_what_bounds_a_layer() -> None:
    """The ridge is at 10 operations per byte in float, at 40 in int8."""
    assert ridge(PEAKS) == {"float": 10, "int8": 40}
    much = roof(PEAKS, 20_000_000, 1_000_000)
    assert much is not None
    assert (much.bound, much.intensity) == (COMPUTE, 20)
    assert much.ms == pytest.approx(0.2)
    same = roof(PEAKS, 20_000_000, 1_000_000, integer=True)
    assert same is not None
    assert same.bound == MEMORY
    assert same.ms == pytest.approx(0.1)
    uncounted = roof(PEAKS, None, 1_000_000)
    assert uncounted is not None
    assert (uncounted.bound, uncounted.intensity) == (MEMORY, None)
    assert roof(PEAKS, 1000, None) is None
    assert roof(PEAKS, None, 0) is None


def test_peaks_are_labelled() -> None:
    told = PEAKS.to_json()
    assert told["label"] == "measured on this machine"
    assert (told["float_gflops"], told["int8_gflops"], told["bandwidth_gb_s"]) == (100, 400, 10)
