"""The time of every layer on real engines: traced back to stages and torch modules, counted as torch counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from builders import onnx_graph, torch_graph
from fusion_nets import ImageAudio, Recurrent
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.errors import BackendError
from edgemm.graph import ExportedGraph, serialize
from edgemm.partition import partition
from edgemm.profiling import layers as module
from edgemm.profiling.layers import profile_layers
from edgemm.profiling.peaks import Peaks
from edgemm.profiling.report import Layer, check
from edgemm.rewrite import rewrite
from edgemm.rewrite.prepare import prepare
from edgemm.runtime import SessionOptions, open_session
from edgemm.tensors import IOSpec, TensorSpec

PEAKS = Peaks("onnxruntime", "1", 1, "f32", 100e9, 400e9, 10e9, "2026-01-01T00:00:00Z")
MODULES = {"image.1", "image.3", "audio.0", "audio.2", "head.0", "head.2"}
BACKENDS = ("onnxruntime", "openvino")


class Attentive(nn.Module):
    """Self-attention with 4 heads over tokens [B,T,32]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(tokens).reshape(*tokens.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2)) + tokens


def image_audio(batch: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.standard_normal((batch, 1, 16, 16)).astype(np.float32),
        "audio": random.standard_normal((batch, 24, 32)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def fusion() -> ExportedGraph:
    torch.manual_seed(0)
    example = {"image": torch.zeros(2, 1, 16, 16), "audio": torch.zeros(2, 24, 32)}
    return rewrite(torch_graph(ImageAudio(), example, outputs=("logits",)))[0]


def make_bundle(graph: ExportedGraph, path: Path, *, layout: str, backend: str = "onnxruntime") -> Path:
    """Writes a bundle of the float graph, one engine per stage or one for all."""
    parts = partition(graph).stages
    stages = tuple(
        StageEntry(s.name, tuple(s.modalities), s.role, s.inputs, s.outputs, len(s.model.graph), s.parameters)
        for s in parts
    )
    if layout == "staged":
        models = {s.name: ((s.name,), s.model, s.inputs, s.outputs) for s in parts}
    else:
        models = {"whole": (tuple(s.name for s in parts), graph.model, graph.io.inputs, graph.io.outputs)}
    files, entries = {}, []
    for name, (covered, model, inputs, outputs) in models.items():
        file = f"engines/cpu-fp32/{name}.onnx"
        files[file] = serialize(model)
        given = tuple(i.name for i in inputs), tuple(o.name for o in outputs)
        entries.append(EngineEntry(name, covered, file, *given, {"fp32": 1}))
    variant = Variant("cpu-fp32", "cpu", backend, "fp32", layout, tuple(entries), {"fp32": 1}, 1)
    write_bundle(path, Manifest("fusion", graph.io, stages, (), (variant,)), files)
    return path


def profiled(path: Path, feed: Mapping[str, np.ndarray], **more: Any) -> dict[str, Any]:
    def open_(options: SessionOptions) -> Any:
        return open_session(path, threads=1, cache="off", options=options)

    folder = path if path.is_dir() else path.parent
    return profile_layers(open_, folder, [feed], runs=20, peaks=lambda *_: PEAKS, threads=1, **more)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["staged", "whole"])
def test_every_weight_has_its_module_and_stage(
    fusion: ExportedGraph, layout: str, backend: str, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    path = make_bundle(fusion, tmp_path / "fusion.edgemm", layout=layout, backend=backend)
    found = profiled(path, image_audio())
    by_module = {layer["module"]: layer for layer in found["layers"] if layer["flops"]}
    heavy = {n.name for n in fusion.model.graph if n.op_type in ("Conv", "Gemm")}
    assert heavy <= {name for layer in found["layers"] if layer["flops"] for name in layer["nodes"]}
    assert set(by_module) <= MODULES  # OpenVINO may run a whole head as one layer
    if backend == "onnxruntime":
        assert set(by_module) == MODULES
    for name, layer in by_module.items():
        stage = "fusion" if name.startswith("head") else name.split(".")[0]
        assert stage in layer["stage"], (name, layer["stage"])
        assert layer["p50_ms"] > 0 or layer["mean_ms"] >= 0
        assert layer["bytes"] > 0
        assert layer["bound"] in ("compute", "memory")
        assert layer["engine"] == (layer["stage"] if layout == "staged" else "whole")
    shares = [layer["share"] for layer in found["layers"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    told = found["profiled"]
    assert told["sum_ms"] == pytest.approx(sum(layer["mean_ms"] for layer in found["layers"]))
    unmapped = sum(layer["mean_ms"] for layer in found["layers"] if layer["module"] is None)
    assert told["unmapped_ms"] == pytest.approx(unmapped)
    assert {e["statistic"] for e in told["engines"]} == {"median" if backend == "onnxruntime" else "mean"}
    assert all(e["runs"] == 20 for e in told["engines"])


def test_layers_fit_the_schema(fusion: ExportedGraph, tmp_path: Path) -> None:
    from edgemm.profiling.typed_json import problems_with  # the parts alone: a whole report is another test's

    found = profiled(make_bundle(fusion, tmp_path / "f.edgemm", layout="staged"), image_audio())
    assert found["layers"]
    assert [p for layer in found["layers"] for p in problems_with(layer, Layer, "layer")] == []
    assert check({"kind": "edgemm-latency-report", "schema": 1} | found) != ()


def counted_by_torch(model: nn.Module, feed: Mapping[str, np.ndarray]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # it does not know the CPU's fused attention
        model(*(torch.from_numpy(a) for a in feed.values()))
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_operations_are_those_that_torch_counts(
    fusion: ExportedGraph, batch: int, backend: str, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    path = make_bundle(fusion, tmp_path / "fusion.edgemm", layout="staged", backend=backend)
    found = profiled(path, image_audio(batch))
    assert found["roofline"]["flops"] == counted_by_torch(ImageAudio().eval(), image_audio(batch))


@pytest.mark.parametrize("fused", [False, True])
def test_operations_of_attention(fused: bool, tmp_path: Path) -> None:
    model = Attentive().eval()
    shape = {"tokens": {0: "batch", 1: "time"}}
    graph = torch_graph(model, {"tokens": torch.zeros(2, 7, 32)}, dynamic=shape)
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(prepare(rewrite(graph)[0].model, "cpu") if fused else graph.model))
    feed = {"tokens": np.random.default_rng(0).standard_normal((2, 11, 32)).astype(np.float32)}
    assert profiled(path, feed)["roofline"]["flops"] == counted_by_torch(model, feed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recurrent_layers_are_counted_by_hand(backend: str, tmp_path: Path) -> None:
    """torch's counter knows no LSTM: 2 x steps x batch x 4 gates x units x (inputs + units).

    OpenVINO gives its recurrent layers names of its own: weights of the same shapes tell them apart.
    """
    pytest.importorskip(backend)
    random = np.random.default_rng(0)
    shapes = {"w1": (1, 64, 6), "r1": (1, 64, 16), "w2": (1, 32, 5), "r2": (1, 32, 8)}
    graph = onnx_graph(
        """g (float[batch,9,6] motion, float[batch,9,5] sound) => (float[batch,16] y, float[batch,8] z) {
            m = Transpose<perm=[1,0,2]>(motion)  s = Transpose<perm=[1,0,2]>(sound)
            [second] z1, z2, z3 = LSTM<hidden_size = 8>(s, w2, r2)  z = Squeeze(z2, first)
            [first] y1, y2, y3 = LSTM<hidden_size = 16>(m, w1, r1)  y = Squeeze(y2, first)
        }""",
        weights={n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        | {"first": np.array([0])},
    )
    path = make_bundle(rewrite(graph)[0], tmp_path / "lstm.edgemm", layout="whole", backend=backend)
    feed = {"motion": np.ones((3, 9, 6), np.float32), "sound": np.ones((3, 9, 5), np.float32)}
    found = profiled(path, feed)
    counted = {tuple(x["nodes"]): (x["flops"], x["stage"]) for x in found["layers"] if x["flops"]}
    assert counted == {
        ("first",): (2 * 9 * 3 * 4 * 16 * (6 + 16), "motion"),
        ("second",): (2 * 9 * 3 * 4 * 8 * (5 + 8), "sound"),
    }


QDQ = """<ir_version: 10, opset_import: ["": 20]>
g (float[batch,8,8,8] image, float[batch,32] audio) => (float[batch,8,8,8] y, float[batch,4] z)
<float s = {0.1}, uint8 m = {128}, float ws = {0.01}, int8 zero = {0}>
{
    xq = QuantizeLinear(image, s, m)
    xd = DequantizeLinear(xq, s, m)
    wd = DequantizeLinear(w, ws, zero)
    [conv] c = Conv<pads=[1,1,1,1]>(xd, wd)
    cq = QuantizeLinear(c, s, m)
    y = DequantizeLinear(cq, s, m)
    aq = QuantizeLinear(audio, s, m)
    ad = DequantizeLinear(aq, s, m)
    bd = DequantizeLinear(b, ws, zero)
    [dense] d = MatMul(ad, bd)
    dq = QuantizeLinear(d, s, m)
    z = DequantizeLinear(dq, s, m)
}"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantized_layers(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(QDQ)
    for name, shape in (("w", (8, 8, 3, 3)), ("b", (32, 4))):
        values = random.integers(-127, 128, shape).astype(np.int8)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.checker.check_model(proto)
    for named, scopes in (("conv", "['', 'see', 'conv2d']"), ("dense", "['', 'hear', 'linear']")):
        (node,) = (n for n in proto.graph.node if n.name == named)
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    data = proto.SerializeToString()
    io_ = IOSpec(
        (TensorSpec("image", "float32", ("batch", 8, 8, 8)), TensorSpec("audio", "float32", ("batch", 32))),
        (TensorSpec("y", "float32", ("batch", 8, 8, 8)), TensorSpec("z", "float32", ("batch", 4))),
        {"image": "image", "audio": "audio"},
    )
    names = ("image", "audio"), ("y", "z")
    stages = tuple(StageEntry(n, (n,), "encoder", (), (), 1, 1) for n in names[0])
    entry = EngineEntry("all", names[0], "engines/all.onnx", *names, {"int8": 2})
    variant = Variant("cpu-int8", "cpu", backend, "int8", "whole", (entry,), {"int8": 2}, len(data))
    path = tmp_path / "quantized.edgemm"
    write_bundle(path, Manifest("q", io_, stages, (), (variant,)), {"engines/all.onnx": data})
    feed = {
        "image": random.standard_normal((2, 8, 8, 8)).astype(np.float32),
        "audio": random.standard_normal((2, 32)).astype(np.float32),
    }
    found = profiled(path, feed)
    by_module = {layer["module"]: layer for layer in found["layers"] if layer["flops"]}
    assert by_module["see"]["flops"] == 2 * 2 * 64 * 8 * 72
    assert by_module["hear"]["flops"] == 2 * 2 * 32 * 4
    assert (by_module["see"]["stage"], by_module["hear"]["stage"]) == ("image", "audio")
    if backend == "onnxruntime":
        assert by_module["see"]["op"] == "QLinearConv"
        assert by_module["see"]["roof_ms"] == pytest.approx(
            max(by_module["see"]["flops"] / 400e9, by_module["see"]["bytes"] / 10e9) * 1e3
        )


def test_bare_file_without_names(tmp_path: Path) -> None:
    """Nodes without a name are told by ONNX Runtime as OP_INDEX."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch,4] x) => (float[batch,3] y)'
        "{ n = Neg(x)  s = Sin(n)  p = MatMul(s, w)  y = Abs(p) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    assert not any(n.name for n in proto.graph.node)
    path = tmp_path / "unnamed.onnx"
    path.write_bytes(proto.SerializeToString())
    found = profiled(path, {"x": np.ones((5, 4), np.float32)})
    assert {layer["op"]: layer["flops"] for layer in found["layers"]} == {
        "Neg": None,
        "Sin": None,
        "MatMul": 2 * 5 * 4 * 3,
        "Abs": None,
    }
    assert found["profiled"]["unmapped_share"] == 1


def test_states_are_carried(tmp_path: Path) -> None:
    example = {"motion": torch.zeros(2, 6), "image": torch.zeros(2, 8), "h": torch.zeros(2, 16)}
    graph, _ = rewrite(torch_graph(Recurrent(), example, states=[("h", "h_out")], outputs=("pose", "h_out")))
    path = make_bundle(graph, tmp_path / "r.edgemm", layout="staged")
    found = profiled(path, {"motion": np.ones((1, 6), np.float32), "image": np.ones((1, 8), np.float32)})
    assert {"cell", "view", "head"} <= {layer["module"] for layer in found["layers"] if layer["flops"]}


def test_control_flow_is_counted_once(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[batch,64] x, bool b) => (float[batch,64] y) {
            [choose] y = If (b) <
                then_branch = t () => (float[batch,64] p) { [inner] p = Sin(x) },
                else_branch = e () => (float[batch,64] q) { [other] q = Cos(x) }>
        }"""
    )
    path = tmp_path / "branch.onnx"
    path.write_bytes(proto.SerializeToString())
    found = profiled(path, {"x": np.ones((2, 64), np.float32), "b": np.array(True)})
    assert [layer["op"] for layer in found["layers"]] == ["If"]


def test_a_backend_that_tells_nothing(
    fusion: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bundle(fusion, tmp_path / "f.edgemm", layout="whole")
    monkeypatch.setattr(module, "READERS", {"openvino": None})
    with pytest.raises(BackendError, match="run by onnxruntime, which does not tell the times of layers"):
        profiled(path, image_audio())


def test_without_a_peak_nothing_is_bound(fusion: ExportedGraph, tmp_path: Path) -> None:
    path = make_bundle(fusion, tmp_path / "f.edgemm", layout="whole")

    def fails(*_: object) -> Peaks:
        raise BackendError("no product", hint="")

    found = profile_layers(
        lambda asked: open_session(path, threads=1, options=asked), path, [image_audio()], runs=10, peaks=fails
    )
    assert {layer["bound"] for layer in found["layers"]} == {None}
    assert found["roofline"]["flops"] > 0
    assert "unavailable" in found["roofline"]["peaks"][0]
