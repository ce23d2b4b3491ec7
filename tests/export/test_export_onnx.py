"""ONNX files as models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from export_nets import array

from edgemm.errors import DataError, ExportError, ModelError, RecipeError
from edgemm.export.model import ModelSource, load_model
from edgemm.export.torch_onnx import ExportRequest, ExportResult, export_model
from edgemm.graph import digest
from edgemm.tensors import BATCH, StateSpec, TensorSpec

HEADER = '<ir_version: 10, opset_import: ["": 20{more}]>\n'
TWO = """g (float[{a},4] image, float[{b},4] audio) => (float[{c},8] y) { y = Concat <axis = 1> (image, audio) }"""


def adopt(text: str, folder: Path, samples: Any = None, more: str = "", **request: Any) -> ExportResult:
    path = folder / "net.onnx"
    model = onnx.parser.parse_model(HEADER.replace("{more}", more) + text)
    onnx.save(model, path)
    return export_model(load_model(ModelSource(path)), ExportRequest(**request), samples, lambda _: None)


def two(a: str, b: str, c: str) -> str:
    return TWO.replace("{a}", a).replace("{b}", b).replace("{c}", c)


ROWS = [{"image": array(4, seed=i), "audio": array(4, seed=i + 9)} for i in range(5)]


@pytest.mark.parametrize(("a", "b", "c"), [("N", "N", "N"), ("n1", "n2", "n3"), ("batch", "batch", "?")])
def test_a_symbolic_batch_is_proven_and_called_batch(a: str, b: str, c: str, tmp_path: Path) -> None:
    result = adopt(two(a, b, c), tmp_path, ROWS)
    io = result.graph.io
    assert [i.shape for i in io.inputs] == [(BATCH, 4), (BATCH, 4)]
    assert io.outputs[0].shape == (BATCH, 8)
    assert io.batch == BATCH
    assert result.dynamic.dynamic[0].checked == (1, 2, 5)
    assert result.parity.outputs["y"].samples == 5
    assert result.graph.provenance["kind"] == "onnx"


def test_a_batch_of_one_stays_as_the_file_has_it(tmp_path: Path) -> None:
    result = adopt(two("1", "1", "1"), tmp_path, ROWS)
    assert result.graph.io.batch == 1
    assert {f.reason for f in result.dynamic.fixed} <= {"fixed in the file"}
    assert result.graph.io.inputs[0].shape == (1, 4)


def test_samples_that_see_each_other_fix_the_batch_to_one(tmp_path: Path) -> None:
    text = """g (float[N,4] image, float[N,4] audio) => (float[N,4] y) {
        s = Softmax <axis = 0> (image)
        y = Add(s, audio)
    }"""
    result = adopt(text, tmp_path, ROWS)
    assert result.graph.io.batch == 1
    assert result.graph.io.inputs[0].shape == (1, 4)
    assert result.graph.io.outputs[0].shape == (1, 4)
    assert "output 'y' differs by" in result.dynamic.fixed[0].reason


def test_a_state_of_an_rnn_and_open_time(tmp_path: Path) -> None:
    text = """g (float[N,T,3] x, float[2,N,4] h0) => (float[N,4] y, float[2,N,4] hn) {
        axis = Constant <value_ints = [1]> ()
        lead = Constant <value_ints = [0]> ()
        m = ReduceMean <keepdims = 0> (x, axis)
        w = Constant <value = float[3,4] {1,2,3,4,5,6,7,8,9,10,11,12}> ()
        p = MatMul (m, w)
        q = Unsqueeze (p, lead)
        s = Add (h0, q)
        hn = Tanh (s)
        y = ReduceMean <keepdims = 0> (hn, lead)
    }"""
    result = adopt(text, tmp_path, [{"x": array(5 + i, 3, seed=i)} for i in range(4)])
    io = result.graph.io
    assert io.states == (StateSpec("h0", "hn"),)
    assert [i.shape for i in io.inputs] == [(BATCH, "T", 3), (2, BATCH, 4)]
    assert [o.shape for o in io.outputs] == [(BATCH, 4), (2, BATCH, 4)]
    assert len({d.symbol: d.checked for d in result.dynamic.dynamic}["T"]) >= 2


def test_names_that_are_no_identifiers_are_kept_and_digests_repeat(tmp_path: Path) -> None:
    text = two("N", "N", "N").replace("image", '"onnx::image/0"')
    try:
        first = adopt(text, tmp_path)
    except onnx.parser.ParseError:
        model = onnx.parser.parse_model(HEADER.replace("{more}", "") + two("N", "N", "N"))
        model.graph.input[0].name = model.graph.node[0].input[0] = "onnx::image/0"
        onnx.save(model, tmp_path / "net.onnx")
        loaded = load_model(ModelSource(tmp_path / "net.onnx"))
        first = export_model(loaded, ExportRequest(), None, lambda _: None)
        second = export_model(loaded, ExportRequest(), None, lambda _: None)
        assert digest(first.graph.model) == digest(second.graph.model)
    assert first.graph.io.inputs[0].name == "onnx::image/0"


def test_quantized_files_go_through_with_a_note(tmp_path: Path) -> None:
    text = """g (float[1,4] x) => (float[1,2] y) {
        w = Constant <value = uint8[4,2] {1,2,3,4,5,6,7,8}> ()
        zero = Constant <value = uint8 {3}> ()
        q, scale, point = DynamicQuantizeLinear (x)
        m = MatMulInteger (q, w, point, zero)
        f = Cast <to = 1> (m)
        y = Mul (f, scale)
    }"""
    result = adopt(text, tmp_path)
    assert any("quantized already (1 DynamicQuantizeLinear, 1 MatMulInteger)" in n for n in result.notes)


def test_an_operator_that_nobody_knows_is_named(tmp_path: Path) -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { y = my.domain.Magic (x) }"
    with pytest.raises((ExportError, ModelError), match=r"my\.domain"):
        adopt(text, tmp_path, more=', "my.domain": 1')


def test_external_data_is_read_into_the_graph(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        HEADER.replace("{more}", "") + "g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(array(64, 64), "w"))
    path = tmp_path / "net.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    loaded = load_model(ModelSource(path))
    assert loaded.parameters == 64 * 64
    (tmp_path / "net.data").rename(tmp_path / "elsewhere")
    result = export_model(loaded, ExportRequest(), None, lambda _: None)
    assert result.graph.model.graph.initializers["w"].const_value is not None
    with pytest.raises(ModelError, match="no valid ONNX model"):
        load_model(ModelSource(path))


def test_what_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no input 'imge'"):
        adopt(two("N", "N", "N"), tmp_path, ROWS, inputs=(TensorSpec("imge", "float32", (1, 4)),))
    with pytest.raises(RecipeError, match="the file says"):
        adopt(two("N", "N", "N"), tmp_path, ROWS, inputs=(TensorSpec("image", "float32", (1, 5)),))
    with pytest.raises(ExportError, match="input 'image', axis 1: the data has sizes 3 there, the file has 4"):
        adopt(two("N", "N", "N"), tmp_path, [r | {"image": r["image"][:3]} for r in ROWS])
    with pytest.raises(DataError, match="no array 'audio'"):
        adopt(two("N", "N", "N"), tmp_path, [{"image": r["image"]} for r in ROWS])


def test_a_model_without_batch(tmp_path: Path) -> None:
    rows = [{"image": array(6, 4, seed=i), "audio": array(6, 4, seed=i + 9)} for i in range(3)]
    result = adopt(two("6", "6", "6"), tmp_path, rows)
    assert result.graph.io.batch is None
    assert np.isfinite(result.parity.max_abs)
