from __future__ import annotations

import io
import tracemalloc

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgemm.graph import (
    WEIGHTS,
    digest,
    let_go,
    load,
    move_weights,
    on_disk,
    remove_mapped,
    serialize,
    size,
    write,
    write_mapped,
)


def model_of(weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A graph that gives every weight back, beside x · small."""
    values = {
        n: ir.Value(name=n, type=ir.TensorType(t.dtype), shape=t.shape, const_value=t) for n, t in weights.items()
    }
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 2]))
    small = ir.Value(name="small", const_value=ir.tensor(np.float32([2, 3]), name="another name"))
    nodes = [ir.node("Mul", [x, small], name="mul")]
    nodes += [ir.node("Identity", [v], name=f"copy_{n}") for n, v in values.items()]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
        source = node.inputs[0] if node.op_type == "Identity" else x
        node.outputs[0].type, node.outputs[0].shape = source.type, source.shape
    graph = ir.Graph(
        [x], [n.outputs[0] for n in nodes], nodes=nodes, initializers=[small, *values.values()],
        opset_imports={"": 21}, name="g", doc_string="all of it",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10, producer_name="test", metadata_props={"key": "value"})


ARRAYS = {
    "float32": np.arange(40_000, dtype=np.float32).reshape(200, 200),
    "columns": np.asfortranarray(np.arange(40_000, dtype=np.float32).reshape(200, 200)),
    "strided": np.arange(80_000, dtype=np.float32).reshape(200, 400)[:, ::2],
    "float16": np.arange(60_000).reshape(-1, 3).astype(np.float16),
    "bfloat16": np.arange(60_000).astype(ml_dtypes.bfloat16),
    "int8": np.arange(-70_000, 70_000).astype(np.int8),
    "int64": np.arange(20_000) * 10**10,
    "bool": np.arange(70_000) % 3 == 0,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_weights_come_back_as_they_were(kind):
    model = model_of({"w": ir.tensor(ARRAYS[kind], name="some tensor")})
    proto = onnx.load_from_string(serialize(model))
    onnx.checker.check_model(proto, full_check=True)
    (found,) = [t for t in proto.graph.initializer if t.name == "w"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), ARRAYS[kind])
    assert [t.name for t in proto.graph.initializer] == ["small", "w"]
    expected = ir.to_proto(model)
    for message in (proto, expected):
        tensors = sorted(message.graph.initializer, key=lambda t: t.name)
        del message.graph.initializer[:]
        message.graph.initializer.extend(tensors)
    assert proto == expected


def test_small_models_are_the_plain_protobuf():
    for model in (model_of({}), ir.Model(model_of({}).graph, ir_version=10)):
        assert serialize(model) == ir.to_proto(model).SerializeToString(deterministic=True)


def test_packed_integers():
    array = (np.arange(200_000) % 16).astype(ml_dtypes.uint4).reshape(400, 500)
    proto = onnx.load_from_string(serialize(model_of({"w": ir.tensor(array, name="w")})))
    found = onnx.numpy_helper.to_array(proto.graph.initializer[1])
    np.testing.assert_array_equal(found.astype(int), array.astype(int))


def test_onnxruntime_reads_both_forms():
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(300, 100)).astype(np.float32) for n in ("a", "b")}
    model = model_of({n: ir.tensor(a, name=n) for n, a in arrays.items()})
    feed = {"x": np.float32([[1, 2]])}
    with on_disk(model) as path:
        assert path.stat().st_size < 10_000
        mapped = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert not path.exists()
    whole = onnxruntime.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])
    for session in (mapped, whole):
        out = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
        np.testing.assert_array_equal(out["mul_out"], [[2, 6]])
        for name, array in arrays.items():
            np.testing.assert_array_equal(out[f"copy_{name}_out"], array)


def test_equal_graphs_give_equal_bytes_and_digests_and_others_do_not():
    def make(array):
        return model_of({"w": ir.tensor(array, name="w")})

    array = ARRAYS["float32"]
    assert serialize(make(array)) == serialize(make(array.copy()))
    assert digest(make(array)) == digest(make(np.asfortranarray(array)))
    changed = array.copy()
    changed[7, 7] += 1
    others = [changed, array.reshape(100, 400), array.view(np.int32)]
    assert len({digest(make(a)) for a in (array, *others)}) == 4


def test_writing_takes_no_second_copy_of_the_weights(tmp_path):
    array = np.zeros((64, 1 << 18), np.float32)  # 64 MB
    model = model_of({f"w{i}": ir.tensor(array, name=f"w{i}") for i in range(3)})
    tracemalloc.start()
    with (tmp_path / "m.onnx").open("wb") as file:
        write(model, file)
    digest(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    assert (tmp_path / "m.onnx").stat().st_size > 3 * array.nbytes
    buffer = io.BytesIO()
    write(model_of({"w": ir.tensor(ARRAYS["float32"], name="w")}), buffer)
    assert buffer.getvalue() == serialize(model_of({"w": ir.tensor(ARRAYS["float32"], name="w")}))


def test_moved_weights_are_shared_mapped_and_written_as_before(tmp_path):
    array = ARRAYS["float32"]
    shared = ir.tensor(array, name="w")
    models = [model_of({"w": shared}), model_of({"v": shared})]
    before = [(serialize(m), digest(m)) for m in models]
    move_weights(models, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size == array.nbytes
    assert [(serialize(m), digest(m)) for m in models] == before
    assert [size(m) for m in models] == [len(content) for content, _ in before]
    let_go(models[0])
    np.testing.assert_array_equal(models[0].graph.initializers["w"].const_value.numpy(), array)


def test_drafts_share_moved_weights_and_hold_others_beside_them(tmp_path):
    model = model_of({"w": ir.tensor(ARRAYS["float32"], name="w")})
    other = model_of({"v": ir.tensor(ARRAYS["float32"] + 1, name="v")})
    move_weights([model], tmp_path)
    drafts = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for m, draft in zip((model, other), drafts, strict=True):
        write_mapped(m, draft)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "b.onnx.data", WEIGHTS]
    for name, draft, array in zip("wv", drafts, (ARRAYS["float32"], ARRAYS["float32"] + 1), strict=True):
        proto = onnx.load_from_string(serialize(load(draft)))
        found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        np.testing.assert_array_equal(found[name], array)
    with on_disk(model) as path:
        assert path.parent == tmp_path
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for draft in drafts:
        remove_mapped(draft)
    assert [f.name for f in tmp_path.iterdir()] == [WEIGHTS]
