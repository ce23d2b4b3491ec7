"""Graphs written for a GPU that is not here: for which targets, and read back."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from trt_graphs import model_of, quantize, random_weights

from edgemm.backends import get_backend
from edgemm.errors import BackendError

MODEL = quantize(
    model_of("g (float[batch,64] x) => (float[batch,16] y) { [fc] y = MatMul(x, w) }", random_weights(w=(64, 16)))
)
FOR = {
    "tensorrt": ("rtx-ampere", "jetson-orin-nano"),
    "ort-tensorrt": ("ort-tensorrt", "jetson-thor"),
    "ort-rtx": ("rtx-blackwell",),
    "ort-cuda": ("cuda", "rtx-turing", "jetson-orin-agx"),
}
NOT_FOR = {"tensorrt": "cuda", "ort-tensorrt": "rtx-ampere", "ort-rtx": "jetson-thor", "ort-cuda": "cpu"}


@pytest.mark.parametrize(("name", "target"), [(n, t) for n, targets in FOR.items() for t in targets])
def test_graph_is_written_as_it_is(tmp_path: Path, name: str, target: str) -> None:
    built = get_backend(name).build(MODEL, target, tmp_path / "g.onnx")
    assert (built.backend, built.file) == (name, tmp_path / "g.onnx")
    assert built.build_report["operators"] == {"DequantizeLinear": 2, "MatMul": 1, "QuantizeLinear": 1}
    assert [n.op_type for n in onnx.load(built.file).graph.node].count("QuantizeLinear") == 1


@pytest.mark.parametrize(("name", "target"), NOT_FOR.items())
def test_targets_without_such_a_gpu_are_refused(tmp_path: Path, name: str, target: str) -> None:
    with pytest.raises(BackendError, match=f"are not built for '{target}' \\(targets: ") as caught:
        get_backend(name).build(MODEL, target, tmp_path / "g.onnx")
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"PK\x03\x04")
    with pytest.raises(BackendError):
        get_backend("tensorrt").prove(tmp_path / "g.onnx", "g")
