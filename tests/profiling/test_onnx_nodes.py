"""The small reader of ONNX files against the onnx package, and what it makes of names and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from builders import torch_graph
from fusion_nets import ImageAudio

from edgemm.errors import BackendError
from edgemm.graph import serialize
from edgemm.profiling.onnx_nodes import Tensor, known_tensors, module_path, read_graph

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
QUANTIZED = f"""{HEAD}
g (float[batch,3,8,8] x) => (float[batch,4,8,8] y)
<float scale = {{0.1}}, uint8 middle = {{128}}, float ws = {{0.01}}, int8 zero = {{0}}>
{{
    xq = QuantizeLinear(x, scale, middle)
    xd = DequantizeLinear(xq, scale, middle)
    wd = DequantizeLinear(w, ws, zero)
    [conv] c = Conv<pads=[1,1,1,1], group=1>(xd, wd)
    r = Relu(c)
    rq = QuantizeLinear(r, scale, middle)
    y = DequantizeLinear(rq, scale, middle)
}}"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    example = {"image": torch.zeros(2, 1, 16, 16), "audio": torch.zeros(2, 24, 32)}
    graph = torch_graph(ImageAudio(), example, outputs=("logits",))
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(graph.model))
    return path


def quantized(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(QUANTIZED)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "w"))
    path = tmp_path / "quantized.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_reads_what_the_onnx_package_reads(exported: Path) -> None:
    graph, wanted = read_graph(exported), onnx.load(exported).graph
    nodes = [n for n in wanted.node if n.op_type != "Constant"]
    assert len(graph.nodes) == len(nodes) > 8
    for node, want in zip(graph.nodes, nodes, strict=True):
        assert (node.name, node.op, node.domain) == (want.name, want.op_type, want.domain)
        assert (node.inputs, node.outputs) == (tuple(want.input), tuple(want.output))
        kinds = {onnx.AttributeProto.INT: "i", onnx.AttributeProto.STRING: "s"}
        told = {a.name: getattr(a, kinds[a.type]) for a in want.attribute if a.type in kinds}
        assert node.attributes == {n: v.decode() if isinstance(v, bytes) else v for n, v in told.items()}
    constants = {i.name: tuple(i.dims) for i in wanted.initializer}
    assert {n: graph.constants[n].shape for n in constants} == constants
    assert graph.declared["image"] == ("float32", ("batch", 1, 16, 16))


def test_torch_modules_are_kept(exported: Path) -> None:
    modules = {n.op: set() for n in read_graph(exported).nodes}
    for node in read_graph(exported).nodes:
        modules[node.op].add(node.module)
    # torch.onnx gives a convolution the name of the batch norm that it folds into it
    assert modules["Conv"] == {"image.1", "image.3", "audio.0", "audio.2"}
    assert modules["Gemm"] == {"head.0", "head.2"}
    assert modules["Concat"] == {""}


def test_negative_attributes_and_constants_of_nodes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        f"{HEAD} g (float[2,3] x) => (float[2,3] y) {{ c = Constant<value = float[3] {{1,2,3}}>()  a = Add(x, c)  "
        "y = Softmax<axis = -1>(a) }"
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graph = read_graph(path)
    assert [n.op for n in graph.nodes] == ["Add", "Softmax"]
    assert graph.nodes[1].attributes == {"axis": -1}
    assert graph.constants == {"c": Tensor("float32", (3,))}


def test_sizes_follow_symbols_and_cross_quantization(tmp_path: Path) -> None:
    graph = read_graph(quantized(tmp_path))
    known = known_tensors(graph, {"batch": 5})
    assert known["xq"].shape == (5, 3, 8, 8)
    assert known["c"] == Tensor("float32", (5, 4, 8, 8))
    assert known["rq"] == Tensor("int8", (5, 4, 8, 8))
    assert known["wd"] == Tensor("float32", (4, 3, 3, 3))
    assert "c" not in known_tensors(graph, {})


@pytest.mark.parametrize(
    ("name", "metadata", "module"),
    [
        ("node_linear", {"pkg.torch.onnx.name_scopes": "['', 'head', 'head.0', 'linear']"}, "head.0"),
        ("node_cat", {"pkg.torch.onnx.name_scopes": "['', 'cat']"}, ""),
        ("node_cat", {"pkg.torch.onnx.name_scopes": "['cat']"}, None),
        ("node_cat", {"pkg.torch.onnx.name_scopes": "nonsense("}, None),
        (
            "n",
            {"namespace": ": Net/head: torch.nn.Sequential/head.0: Linear/linear: aten.linear.default"},
            "head.0",
        ),
        ("n", {"namespace": ": Net/cat: aten.cat.default"}, ""),
        ("/encoder/layer.0/fc/MatMul", {}, "encoder.layer.0.fc"),
        ("/Concat", {}, None),
        ("Conv_3", {}, None),
        ("a/b/c", {}, None),
        ("", {}, None),
    ],
)
def test_module_path(name: str, metadata: dict[str, str], module: str | None) -> None:
    assert module_path(name, metadata) == module


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x3a\xff\x01"])
def test_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"model\.onnx is no ONNX file"):
        read_graph(path)
    with pytest.raises(BackendError, match=r"none\.onnx"):
        read_graph(tmp_path / "none.onnx")
