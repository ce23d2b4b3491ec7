"""What the build reads of an ONNX file without the onnx package, against what onnx and onnx_ir say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from trt_graphs import model_of, quantize, random_weights, write

from edgemm.backends._trt.onnx_file import Weights, read_onnx
from edgemm.errors import BackendError
from edgemm.graph import write_mapped

GRAPH = model_of(
    """g (float[batch,3,8,8] x, int64[n] ids) => (float[batch,16,8,8] y, float[a,b] z) <float[2] c = {1, 2}> {
        [conv] t = Conv<pads=[1,1,1,1]>(x, w1)  y = Relu(t)
        e = Gather(w2, ids)  [cast] h = Cast<to=10>(e)  z = Cast<to=1>(h)
    }""",
    random_weights(w1=(16, 3, 3, 3), w2=(10, 4)),
)


def test_nodes_inputs_outputs_and_digest(tmp_path: Path) -> None:
    file = write(GRAPH, tmp_path)
    found = read_onnx(file)
    proto = onnx.load(file)
    assert [(n.name, n.op, n.inputs, n.outputs) for n in found.nodes] == [
        (n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in proto.graph.node
    ]
    assert [str(i) for i in found.inputs] == ["x[batch,3,8,8] float32", "ids[n] int64"]
    assert [str(o) for o in found.outputs] == ["y[batch,16,8,8] float32", "z[a,b] float32"]
    assert found.dtypes["w1"] == "float32"
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(found.nodes[0]) == "node 'conv' (Conv)"
    assert str(found.nodes[1]) == "the Relu node that gives 'y'"
    assert found.named("node_of_y") is found.nodes[1]
    assert found.named("conv") is found.nodes[0]
    assert found.named("") is None


def test_float_weights_are_other(tmp_path: Path) -> None:
    assert read_onnx(write(GRAPH, tmp_path)).weights == Weights(0, 0, 4 * (16 * 27 + 40 + 2))


def test_quantized_weights_count_in_both_sizes(tmp_path: Path) -> None:
    found = read_onnx(write(quantize(GRAPH), tmp_path))
    scales = 16 * 4 + 16 + 4 + 1  # scale and zero point of the weight, then of the data
    assert found.weights == Weights(16 * 27, 4 * 16 * 27, 4 * 40 + scales)
    assert found.dequantized == {"int8": 2}


@pytest.mark.parametrize(
    ("body", "expected", "dtype"),
    [
        ("q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)", Weights(64, 256, 5), "int8"),
        ("q = QuantizeLinear(w, s)  d = DequantizeLinear(q, s)", Weights(64, 256, 5), "uint8"),
        ("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)", Weights(0, 0, 261), "int8"),
    ],
)
def test_weights_behind_a_quantizer(body: str, expected: Weights, dtype: str, tmp_path: Path) -> None:
    text = f"g (float[8,8] x) => (float[8,8] y) <float s = {{0.1}}, int8 z = {{0}}> {{ {body}  y = MatMul(x, d) }}"
    found = read_onnx(write(model_of(text, random_weights(w=(8, 8))), tmp_path))
    assert (found.weights, found.dequantized) == (expected, {dtype: 1})


def test_half_scales_make_half_weights(tmp_path: Path) -> None:
    weights = {"q": np.ones((8, 8), np.int8), "s": np.float16(0.1), "z": np.int8(0)}
    text = "g (float16[8,8] x) => (float16[8,8] y) { d = DequantizeLinear(q, s, z)  y = MatMul(x, d) }"
    assert read_onnx(write(model_of(text, weights), tmp_path)).weights == Weights(64, 128, 3)


def test_constants_in_nodes_and_four_bits(tmp_path: Path) -> None:
    model = model_of(
        """g (float[8] x) => (float[8] y) <float s = {0.5}> {
            q = Constant<value = int4[8] {1, 2, 3, 4, 5, 6, 7, -8}>()
            d = DequantizeLinear(q, s)  y = Mul(x, d)
        }""",
        opset=21,
    )
    found = read_onnx(write(model, tmp_path))
    assert (found.weights, found.dequantized) == (Weights(4, 32, 4), {"int4": 1})


def test_bias_in_int32_is_no_quantized_weight(tmp_path: Path) -> None:
    weights = {"q": np.ones(8, np.int32), "s": np.float32(0.1), "z": np.int32(0)}
    text = "g (float[8] x) => (float[8] y) { d = DequantizeLinear(q, s, z)  y = Add(x, d) }"
    found = read_onnx(write(model_of(text, weights), tmp_path))
    assert (found.weights, found.dequantized) == (Weights(0, 0, 40), {"int32": 1})


def test_weights_in_other_files_are_part_of_the_digest(tmp_path: Path) -> None:
    model = model_of("g (float[2,256] x) => (float[2,256] y) { y = MatMul(x, w) }", random_weights(w=(256, 256)))
    write_mapped(model, tmp_path / "m.onnx")
    first = read_onnx(tmp_path / "m.onnx")
    assert first.weights == Weights(0, 0, 4 * 256 * 256)
    data = tmp_path / "m.onnx.data"
    content = (tmp_path / "m.onnx").read_bytes() + data.read_bytes()
    assert first.sha256 == hashlib.sha256(content).hexdigest()
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    assert read_onnx(tmp_path / "m.onnx").sha256 != first.sha256
    data.unlink()
    with pytest.raises(BackendError, match=r"m\.onnx\.data: No such file"):
        read_onnx(tmp_path / "m.onnx")


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    for content in (b"", b"\x08", b"hello world", onnx.ModelProto(ir_version=10).SerializeToString()):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(BackendError, match="is no ONNX file"):
            read_onnx(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"nothing\.onnx: No such file"):
        read_onnx(tmp_path / "nothing.onnx")


def test_every_onnx_dtype_has_its_bits() -> None:
    from edgemm.backends._trt.onnx_file import ELEMENTS

    for number, (name, bits) in ELEMENTS.items():
        dtype = ir.DataType(number)
        assert name == ("string" if bits == 0 else dtype.numpy().name)
        assert bits in (0, dtype.bitwidth if bits else 0)
