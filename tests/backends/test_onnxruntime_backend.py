"""Engines for ONNX Runtime: what is built runs, what cannot run is named while building."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgemm import graph
from edgemm.backends import BACKENDS, get_backend
from edgemm.errors import BackendError
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.registry import SESSIONS
from edgemm.runtime.session import SessionOptions

HEADER = '<ir_version: 10, opset_import: ["" : 20, "my.domain" : 1]>\n'
SIMPLE = "g (float[n,2] x) => (float[n,2] y) <float[2] w = {1, 2}> { s = Add(x, w)  y = Relu(s) }"


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


def run(file: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(OrtSession(file, SessionOptions()).run(feed))


def test_engine_is_the_graph_and_runs(tmp_path: Path) -> None:
    model = model_of(SIMPLE)
    engine = get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine")
    assert (engine.backend, engine.file) == ("onnxruntime", tmp_path / "engine")
    assert engine.file.read_bytes() == graph.serialize(model)
    assert engine.build_report["operators"] == {"Add": 1, "Relu": 1}
    assert engine.build_report["bytes"] == engine.file.stat().st_size
    (y,) = run(engine.file, {"x": np.array([[-3, 1]], np.float32)})
    np.testing.assert_array_equal(y, [[0, 3]])


def test_same_graph_gives_same_bytes(tmp_path: Path) -> None:
    files = [get_backend("onnxruntime").build(model_of(SIMPLE), "cpu", tmp_path / n).file for n in "abc"]
    assert len({file.read_bytes() for file in files}) == 1


def test_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    model = model_of("g (float[n,2] x) => (float[n,2] y) { a = Relu(x)  y = my.domain.Foo(a) }")
    model.graph[1].name = "/fusion/Foo"
    with pytest.raises(BackendError, match=r"my.domain:Foo.* is not a registered .*nodes: /fusion/Foo") as caught:
        get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine")
    assert "rewrite the layer" in caught.value.hint


def test_operator_without_a_kernel_is_named_with_its_node(tmp_path: Path) -> None:
    model = model_of("g (double[n,2] x) => (double[n,2] y) { [bad_node] y = Erf(x) }")
    with pytest.raises(
        BackendError, match=r"(?m)Could not find an implementation for Erf\(13\) node with name 'bad_node'$"
    ):
        get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine")


def test_wrong_type_is_named_with_its_node(tmp_path: Path) -> None:
    model = model_of("g (bfloat16[n,2] x) => (bfloat16[n,2] y) { [bad_node] y = Asinh(x) }")
    with pytest.raises(BackendError, match="bad_node"):
        get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine")


def test_external_weights_are_taken_in(tmp_path: Path) -> None:
    weights = np.arange(400, dtype=np.float32).reshape(2, 200)
    text = "g (float[n,2] x) => (float[n,200] y) { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = graph.load(tmp_path / "m.onnx")
    engine = get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine")
    assert isinstance(
        model.graph.initializers["w"].const_value, ir.ExternalTensor
    )  # the caller's graph is as it was
    (tmp_path / "weights.bin").unlink()
    (y,) = run(engine.file, {"x": np.ones((1, 2), np.float32)})
    np.testing.assert_array_equal(y[0], weights.sum(axis=0))


def test_more_than_two_gib_is_refused_before_it_is_made(tmp_path: Path) -> None:
    def never() -> ir.Tensor:
        raise AssertionError("the weights were read")

    shape = ir.Shape([30_000, 30_000])
    weight = ir.Value(name="w", const_value=ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=shape, name="w"))
    model = model_of("g (float[n,30000] x) => (float[n,30000] y) { y = Relu(x) }")
    model.graph.register_initializer(weight)
    with pytest.raises(
        BackendError, match=r"'g' has 3.4 GiB of weights; one ONNX file holds at most 2 GiB"
    ) as caught:
        get_backend("onnxruntime").build(model, "cpu", tmp_path / "engine")
    assert "stages" in caught.value.hint


def test_unknown_target_and_backend(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"not built for 'cpus' \(targets: cpu\)") as caught:
        get_backend("onnxruntime").build(model_of(SIMPLE), "cpus", tmp_path / "engine")
    assert caught.value.hint == "did you mean 'cpu'?"
    with pytest.raises(BackendError, match="no backend 'onnxruntim'") as caught:
        get_backend("onnxruntim")
    assert caught.value.hint == "did you mean 'onnxruntime'?"


def test_every_builder_has_its_session_twin() -> None:
    assert BACKENDS.keys() == SESSIONS.keys()
    for name in BACKENDS:
        assert get_backend(name).name == name


def test_null_backend_needs_dtypes_and_shapes(tmp_path: Path) -> None:
    model = model_of(SIMPLE)
    get_backend("null").build(model, "anything", tmp_path / "engine")
    assert get_backend("null").suffix == ".json"
    model.graph.inputs[0].shape = None
    with pytest.raises(BackendError, match="'x' has no dtype or shape"):
        get_backend("null").build(model, "anything", tmp_path / "engine")
