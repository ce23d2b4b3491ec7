"""What the OpenVINO backend builds, and what it refuses; real models against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from fusion_nets import ImageAudio, samples

from edgemm.backends import get_backend
from edgemm.errors import BackendError
from edgemm.runtime.openvino import OpenVinoSession
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.session import SessionOptions

HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\n'
SIMPLE = "g (float[n,2] x) => (float[n,2] y) { y = Neg(x) }"
OPTIONS = SessionOptions(threads=1)


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


def both(model: ir.Model, folder: Path) -> tuple[OpenVinoSession, OrtSession]:
    """Returns the model on both runtimes, from the same file."""
    file = folder / "m.onnx"
    get_backend("openvino").build(model, "cpu", file)
    return OpenVinoSession(file, OPTIONS), OrtSession(file, OPTIONS)


def test_file_is_that_of_onnxruntime(tmp_path: Path) -> None:
    names = ("openvino", "onnxruntime")
    mine, other = (get_backend(n).build(model_of(SIMPLE), "cpu", tmp_path / f"{n}.onnx") for n in names)
    assert (mine.backend, mine.file.read_bytes()) == ("openvino", other.file.read_bytes())
    assert mine.build_report["operators"] == {"Neg": 1}


@pytest.mark.parametrize("operator", ["Det", "com.microsoft.Inverse"])
def test_operator_that_openvino_lacks_is_named_with_its_node(operator: str, tmp_path: Path) -> None:
    model = model_of(f"g (float[2,2] x) => (float y) {{ z = Relu(x)  y = {operator}(z) }}")
    model.graph.node(1).name = "layer4/deep"
    with pytest.raises(BackendError, match=rf"{operator}.*\(nodes: layer4/deep\)") as caught:
        get_backend("openvino").build(model, "cpu", tmp_path / "m.onnx")
    assert "onnxruntime" in caught.value.hint


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"not built for 'gpu' \(targets: cpu\)"):
        get_backend("openvino").build(model_of(SIMPLE), "gpu", tmp_path / "m.onnx")


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_quantized_graphs_run_in_both_domains(domain: str, tmp_path: Path) -> None:
    model = model_of(
        f"""g (float[n,4] x) => (float[n,4] y) <float s = {{0.1}}, uint8 z = {{128}}>
        {{ q = {domain}QuantizeLinear(x, s, z)  y = {domain}DequantizeLinear(q, s, z) }}"""
    )
    mine, reference = both(model, tmp_path)
    x = np.random.default_rng(0).uniform(-15, 15, (3, 4)).astype(np.float32)
    np.testing.assert_allclose(mine.run({"x": x})[0], reference.run({"x": x})[0], atol=1e-5)


def test_two_modalities_agree_with_onnxruntime(tmp_path: Path) -> None:
    data = samples(5, seed=3)
    example = {name: torch.from_numpy(data[name][:2]) for name in ("image", "audio")}
    torch.manual_seed(0)
    program = torch.onnx.export(
        ImageAudio().eval(),
        (),
        kwargs=example,
        dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in example},
        dynamo=True,
        verbose=False,
    )
    mine, reference = both(program.model, tmp_path)
    assert (mine.inputs, mine.outputs) == (reference.inputs, reference.outputs)
    for size in (1, 5, 2, 3):
        feed = {name: data[name][:size] for name in example}
        np.testing.assert_allclose(mine.run(feed)[0], reference.run(feed)[0], rtol=1e-4, atol=1e-5)
