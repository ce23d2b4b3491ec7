"""`edgemm compare` on a trained image+audio net: float, int8 with Q/DQ, a staged bundle, and one broken layer."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import fusion_nets
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from builders import torch_graph

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.graph import ExportedGraph, serialize
from edgemm.partition import Stage, StageGraph, partition
from edgemm.quant.apply import apply_plan
from edgemm.quant.collect import collect
from edgemm.quant.placement import plan_quantization
from edgemm.rewrite.pipeline import rewrite


@dataclass(frozen=True)
class Files:
    folder: Path
    graph: ExportedGraph
    table: object

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("compare")
    example = {"image": torch.zeros(2, 1, 16, 16), "audio": torch.zeros(2, 24, 32)}
    graph, _ = rewrite(torch_graph(fusion_nets.trained(), example, outputs=("logits",)))
    (folder / "float.onnx").write_bytes(serialize(graph.model))
    data = fusion_nets.samples(60, 2)
    np.savez(folder / "data.npz", **data)
    rows = [{n: v[i] for n, v in data.items()} for i in range(40)]
    whole = Stage("whole", ("image", "audio"), "whole", graph.io.inputs, graph.io.outputs, graph.model, 0, 0)
    stages = StageGraph((whole,), (), ())
    table = collect(stages, graph.io, rows, "percentile")
    model = apply_plan(whole, plan_quantization(stages, table), table)
    assert any(n.op_type == "QuantizeLinear" for n in model.graph)
    (folder / "int8.onnx").write_bytes(serialize(model))
    bundle(folder / "staged.edgemm", graph)
    return Files(folder, graph, table)


def bundle(path: Path, graph: ExportedGraph, broken: str = "") -> None:
    """Writes one engine per stage; variant `broken` has the output of one convolution doubled."""
    stages = partition(graph)
    content, variants = {}, []
    for name in ("good", *(["broken"] if broken else [])):
        entries = []
        for stage in stages.stages:
            model = damaged(stage.model, broken) if name == "broken" else stage.model
            file = f"engines/{name}/{stage.name}.onnx"
            content[file] = serialize(model)
            inputs, outputs = (tuple(t.name for t in ts) for ts in (stage.inputs, stage.outputs))
            entries.append(EngineEntry(stage.name, (stage.name,), file, inputs, outputs, {"fp32": 1}))
        variants.append(Variant(name, "cpu", "onnxruntime", "fp32", "staged", tuple(entries), {"fp32": 3}, 1))
    told = tuple(
        StageEntry(s.name, s.modalities, s.role, s.inputs, s.outputs, s.nodes, s.parameters) for s in stages.stages
    )
    write_bundle(path, Manifest("net", graph.io, told, (), tuple(variants)), content)


def damaged(model: ir.Model, tensor: str) -> ir.Model:
    model = model.clone()
    for node in model.graph:
        if node.outputs[0].name == tensor:
            weight = node.inputs[1]
            weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name=weight.name)
    return model


def convolutions(graph: ExportedGraph) -> list[str]:
    return [n.outputs[0].name for n in graph.model.graph if n.op_type == "Conv"]


def sqnr(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())


def outputs_of(path: Path, data: Path, *names: str) -> list[np.ndarray]:
    """What onnxruntime gives one sample at a time, with tensors from inside as outputs."""
    model = ir.load(path)
    values = {v.name: v for n in model.graph for v in n.outputs}
    have = [o.name for o in model.graph.outputs]
    for name in names:
        if name not in have:
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(values[name])
    session = onnxruntime.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])
    with np.load(data) as arrays:
        image, audio = arrays["image"], arrays["audio"]
    rows = [
        session.run(list(names), {"image": i[None], "audio": a[None]}) for i, a in zip(image, audio, strict=True)
    ]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def test_a_model_is_equal_to_itself_and_to_its_stages(edgemm, files: Files) -> None:
    for other in ("float.onnx", "staged.edgemm"):
        result = edgemm("compare", files / "float.onnx", files / other, "--data", files / "data.npz", "--json")
        assert result.code == 0, result.err
        told = result.json
        assert told["outputs"]["logits"]["agreement"] == 1.0
        assert told["outputs"]["logits"]["max_abs"] < 1e-5
        assert told["first_diverging"] is None
        assert {x["tensor"] for x in told["layers"]} >= set(convolutions(files.graph))


def test_numbers_of_an_int8_model(edgemm, files: Files) -> None:
    result = edgemm("compare", files / "float.onnx", files / "int8.onnx", "--data", files / "data.npz", "--json")
    assert result.code == 0, result.err
    told = result.json
    found = told["outputs"]["logits"]
    (a,), (b,) = (outputs_of(files / name, files / "data.npz", "logits") for name in ("float.onnx", "int8.onnx"))
    assert found["samples"] == 60
    assert found["sqnr_db"] == pytest.approx(sqnr(a, b), rel=1e-3)
    assert found["max_abs"] == pytest.approx(np.abs(a - b).max(), rel=1e-4)
    assert found["agreement"] == np.mean(a.argmax(1) == b.argmax(1))
    order = np.abs(a - b).max(axis=1)
    assert [w["sample"] for w in found["worst"]] == list(np.argsort(-order)[:5])
    assert found["worst"][0]["max_abs"] == pytest.approx(order.max(), rel=1e-4)
    assert 20 < found["sqnr_db"] < 60


def test_tensors_are_matched_behind_dequantize(edgemm, files: Files) -> None:
    result = edgemm("compare", files / "float.onnx", files / "int8.onnx", "--data", files / "data.npz", "--json")
    layers = {x["tensor"]: x for x in result.json["layers"]}
    assert layers["audio"]["op"] == "input"  # quantized on its way in
    rounding = files.table.ranges["whole:audio"]
    step = (rounding.high - rounding.low) / 255
    assert step / 2 * 0.9 < layers["audio"]["max_abs"]
    assert "image" not in layers  # not quantized: the same numbers went in
    quantized = [n.inputs[0].name for n in ir.load(files / "int8.onnx").graph if n.op_type == "QuantizeLinear"]
    inside = [name for name in quantized if name in layers and name != "audio"]
    assert inside
    for name in inside:
        reference, behind = (
            outputs_of(files / file, files / "data.npz", tensor)[0]
            for file, tensor in (("float.onnx", name), ("int8.onnx", f"{name}/dequantized"))
        )
        assert layers[name]["sqnr_db"] == pytest.approx(sqnr(reference, behind), abs=0.5)
    assert not any("dequantized" in name or "quantized" in name for name in layers)


@pytest.mark.parametrize("at", [1, 3])
def test_a_broken_layer_is_the_first_that_diverges(edgemm, files: Files, tmp_path: Path, at: int) -> None:
    name = convolutions(files.graph)[at]
    bundle(tmp_path / "net.edgemm", files.graph, broken=name)
    args = ("compare", files / "float.onnx", f"{tmp_path / 'net.edgemm'}:broken", "--data", files / "data.npz")
    told = edgemm(*args, "--json").json
    assert told["b"]["variant"] == "broken"
    assert told["first_diverging"]["tensor"] == name
    assert told["first_diverging"]["op"] == "Conv"
    assert told["first_diverging"]["sqnr_db"] < 5
    before = told["layers"][: [x["tensor"] for x in told["layers"]].index(name)]
    assert all(x["sqnr_db"] is None or x["sqnr_db"] > 60 for x in before)
    text = edgemm(*args)
    assert text.code == 0
    assert f"first diverging: '{name}' (Conv)" in text.out
    (marked,) = [line for line in text.out.splitlines() if line.endswith("<- first diverging")]
    assert marked.startswith(name)
    again = edgemm(*args[:2], tmp_path / "net.edgemm", *args[3:], "--variant", "broken", "--json").json
    assert again["first_diverging"]["tensor"] == name


def test_the_threshold_decides(edgemm, files: Files) -> None:
    args = ("compare", files / "float.onnx", files / "int8.onnx", "--data", files / "data.npz")
    low, high = (edgemm(*args, "--threshold", db, "--json").json for db in (10, 90))
    assert low["first_diverging"] is None
    assert high["first_diverging"]["tensor"] == high["layers"][0]["tensor"]
    assert "no tensor diverges: all are at 10 dB or above" in edgemm(*args, "--threshold", 10).out


def test_few_samples_and_outputs_only(edgemm, files: Files) -> None:
    args = ("compare", files / "float.onnx", files / "int8.onnx", "--data", files / "data.npz", "--json")
    told = edgemm(*args, "--samples", 7, "--layer-samples", 3).json
    assert (told["samples"], told["outputs"]["logits"]["samples"], told["layer_samples"]) == (7, 7, 3)
    told = edgemm(*args, "--layer-samples", 0).json
    assert (told["layers"], told["layer_samples"]) == ([], 0)


def test_states_are_carried(edgemm, stream_bundle: Path, npz) -> None:
    data = npz(x=np.arange(24, dtype=np.float32).reshape(12, 2))
    told = edgemm("compare", stream_bundle, stream_bundle, "--data", data, "--json").json
    assert told["outputs"]["y"]["max_abs"] == 0
    assert {x["tensor"] for x in told["layers"]} == {"h_out", "y"}


def test_outputs_that_become_nan_diverge(edgemm, onnx_file, npz) -> None:
    head = '<ir_version: 10, opset_import: ["": 20]>\n'
    text = head + "g (float[batch,3] x) => (float[batch,3] y) { a = Exp(x)  y = OP(a) }"
    good, bad = (
        onnx_file(text.replace("OP", "Neg"), "good.onnx"),
        onnx_file(text.replace("OP(a)", "Log(b)").replace("a = Exp(x)", "a = Exp(x)  b = Neg(a)"), "bad.onnx"),
    )
    result = edgemm("compare", good, bad, "--data", npz(x=np.ones((4, 3), np.float32)), "--json")
    assert result.code == 0, result.err
    assert result.json["first_diverging"]["tensor"] == "y"
    assert "-inf" in edgemm("compare", good, bad, "--data", npz(x=np.ones((4, 3), np.float32))).out


def test_what_cannot_be_compared_is_said(edgemm, files: Files, fusion_bundle: Path, onnx_file, npz) -> None:
    other = onnx_file(
        '<ir_version: 10, opset_import: ["": 20]>\ng (float[batch,3] x) => (float[batch,3] z) { z = Neg(x) }'
    )
    data = files / "data.npz"
    cases = [
        ((files / "float.onnx", other, "--data", data), "no output of the same name", "two forms of one model"),
        ((other, other, "--data", data), "model.onnx takes 'x', and the data has no such", "add it to the data"),
        ((files / "float.onnx", "nothing.edgemm", "--data", data), "nothing.edgemm", ""),
        ((fusion_bundle, f"{fusion_bundle}:cpu-int8", "--data", data), "'cpu-int8' was not shipped", "cpu-fp32"),
    ]  # fmt: skip
    for args, message, hint in cases:
        result = edgemm("compare", *args)
        assert result.code == 1, args
        assert message in result.err
        assert hint in result.err
    result = edgemm("compare", files / "float.onnx", f"{fusion_bundle}:a", "--variant", "b", "--data", data)
    assert result.code == 2
    assert "names 'a', --variant names 'b'" in result.err


def test_memory_does_not_grow_with_the_samples(edgemm, files: Files, tmp_path: Path) -> None:
    peaks = []
    for count in (50, 500):
        data = tmp_path / f"{count}.npz"
        np.savez(data, **fusion_nets.samples(count, 3))
        tracemalloc.start()
        edgemm("compare", files / "float.onnx", files / "int8.onnx", "--data", data, "--json")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6  # 500 samples are 2 MB
