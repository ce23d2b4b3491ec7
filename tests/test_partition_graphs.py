"""Corner cases of the partition, as ONNX text: shapes, states, control flow, constants, odd outputs, names."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import (
    concat_model,
    exported,
    onnx_graph,
    partition_and_compare,
    random_feed,
    run_stages,
    run_whole,
)

from edgemm.graph import digest
from edgemm.partition import partition


def names(stages):
    return [s.name for s in stages.stages]


def ops(stages, name):
    return [n.op_type for n in stages.stage(name).model.graph]


def read_by(stages, name):
    return [i.name for i in stages.stage(name).inputs]


def test_partition_leaves_its_argument_alone_and_is_deterministic():
    graph = concat_model()
    before = digest(graph.model)

    first, second = partition(graph), partition(graph)

    assert digest(graph.model) == before
    assert first.to_json() == second.to_json()
    assert [digest(s.model) for s in first.stages] == [digest(s.model) for s in second.stages]


def test_to_json_is_plain_data():
    data = json.loads(json.dumps(partition(concat_model()).to_json()))

    assert set(data) == {"stages", "edges", "joins", "notes"}
    assert data["stages"][0] == {
        "name": "image",
        "modalities": ["image"],
        "role": "encoder",
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 8]}],
        "outputs": [{"name": "i1", "dtype": "float32", "shape": ["batch", 6]}],
        "nodes": 2,
        "parameters": 48,
    }
    assert data["joins"] == [
        {"node": "Concat", "op": "Concat", "kind": "concat", "stage": "fusion", "sources": ["image", "audio"]}
    ]


def test_stage_lookup_names_the_missing_stage():
    with pytest.raises(KeyError, match="imge"):
        partition(concat_model()).stage("imge")


# --- shapes -------------------------------------------------------------------------------------------------


def test_a_full_shape_behind_gather_concat_expand_is_read_from_the_own_input():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,7] text) => (float[batch,8] y) {
            s = Shape(text)
            zero = Constant<value_ints = [0]>()
            five = Constant<value_ints = [5]>()
            b = Gather(s, zero)
            target = Concat<axis=0>(b, five)
            token = Constant<value = float[1,5] {1.0, 2.0, 3.0, 4.0, 5.0}>()
            tokens = Expand(token, target)
            i = Concat<axis=1>(image, tokens)
            r = ReduceMean(text)
            t = Reshape(r, one)
            y = Add(i, t)
        }""",
        weights={"one": np.array([1, 1], np.int64)},
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    assert names(stages) == ["image", "text", "fusion"]
    assert read_by(stages, "image") == ["image"]
    assert "Shape" in ops(stages, "image")
    assert stages.notes == ()


def test_only_the_dimensions_that_are_picked_need_a_source():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,length] text) => (float[batch,3] y, float t) {
            s = Shape(text)
            from = Constant<value_ints = [0]>()
            to = Constant<value_ints = [1]>()
            b = Slice(s, from, to)
            target = Concat<axis=0>(b, to)
            ones = ConstantOfShape<value = float[1] {1.0}>(target)
            y = Add(image, ones)
            t = ReduceSum<keepdims=0>(text)
        }"""
    )

    stages = partition_and_compare(
        graph, random_feed(graph, batch=1, length=4), random_feed(graph, batch=3, length=2)
    )

    assert names(stages) == ["image", "text"]
    assert read_by(stages, "image") == ["image"]


def test_fixed_dimensions_become_constants():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,7] text) => (float[batch,3] y, float t) {
            s = Shape<start=1, end=2>(text)
            n = Cast<to=1>(s)
            y = Div(image, n)
            z = Shape<start=1>(image)
            v = Cast<to=1>(z)
            w = Div(text, v)
            t = ReduceSum<keepdims=0>(w)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=2))

    assert names(stages) == ["image", "text"]
    assert "Shape" not in ops(stages, "image") + ops(stages, "text")


def test_size_is_the_product_of_dimensions():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,7] text) => (float[batch,3] y, float t) {
            s = Size(text)
            n = Cast<to=1>(s)
            y = Div(image, n)
            t = ReduceSum<keepdims=0>(text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert names(stages) == ["image", "text"]
    assert read_by(stages, "image") == ["image"]


def test_a_dimension_that_no_own_input_carries_is_a_value_with_a_note():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,length] text) => (float[batch,3] y, float t) {
            s = Shape<start=1, end=2>(text)
            n = Cast<to=1>(s)
            y = Div(image, n)
            t = ReduceSum<keepdims=0>(text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, length=4), random_feed(graph, batch=1, length=9))

    assert names(stages) == ["text", "fusion"]
    assert stages.stage("fusion").modalities == ("image", "text")
    # the number crosses, not the text
    assert read_by(stages, "fusion") == ["image", "n"]
    assert len(stages.notes) == 1
    assert "'text'" in stages.notes[0]
    assert "'length'" in stages.notes[0]


def test_shapes_in_old_opsets_are_read_with_gather():
    graph = onnx_graph(
        """<ir_version: 7, opset_import: ["": 11]>
        g (float[batch,3] image, float[batch,7] text) => (float[batch,3] y, float t) {
            s = Shape(text)
            zero = Constant<value = int64[1] {0}>()
            b = Gather(s, zero)
            n = Cast<to=1>(b)
            y = Div(image, n)
            t = ReduceSum<keepdims=0>(text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert names(stages) == ["image", "text"]
    assert all("start" not in n.attributes for n in stages.stage("image").model.graph)


def test_a_shape_that_is_a_graph_output_is_served():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,7] text) => (float[batch,3] y, int64[2] s, int64[1] c) {
            y = Relu(image)
            s = Shape(text)
            c = Shape<start=1>(text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=5))

    assert names(stages) == ["image"]  # nothing reads the values of text


def test_cut_tensors_of_unknown_size_get_symbols_of_their_own():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,7] text) => (float y) {
            i = NonZero(image)
            j = Cast<to=1>(i)
            a = ReduceSum<keepdims=0>(text)
            m = Mul(j, a)
            y = ReduceSum<keepdims=0>(m)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=3))

    shape = stages.stage("image").outputs[0].shape
    assert shape[0] == 2
    assert isinstance(shape[1], str)
    assert stages.stage("fusion").inputs[0].shape == shape


# --- states -------------------------------------------------------------------------------------------------


def test_a_state_has_the_modalities_of_its_own_output():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text, float[batch,3] h, float[batch,3] k)
              => (float[batch,3] y, float[batch,3] h_out, float[batch,3] k_out) {
            i = Relu(image)
            h1 = Tanh(h)
            t = Relu(text)
            h2 = Add(h1, i)
            h_out = Add(h2, t)
            k1 = Sigmoid(k)
            k_out = Mul(k1, t)
            y = Identity(h_out)
        }""",
        states=[("h", "h_out"), ("k", "k_out")],
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["image", "text", "fusion"]
    assert read_by(stages, "fusion")[0] == "h"
    assert read_by(stages, "text") == ["text", "k"]
    assert "Tanh" in ops(stages, "fusion")  # h is of both modalities


def test_a_state_that_no_modality_reaches_is_a_modality_of_its_own():
    graph = onnx_graph(
        """g (float[batch,3] image, float step) => (float[batch,3] y, float step_out) {
            one = Constant<value_float = 1.0>()
            step_out = Add(step, one)
            i = Relu(image)
            y = Mul(i, step_out)
        }""",
        states=[("step", "step_out")],
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert [(s.name, s.modalities) for s in stages.stages] == [
        ("image", ("image",)),
        ("step", ("step",)),
        ("fusion", ("image", "step")),
    ]


# --- constants and random numbers ---------------------------------------------------------------------------


def test_constants_are_copied_into_each_stage_that_uses_them():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text) => (float[batch,3] y) {
            c = Constant<value_float = 2.0>()
            d = Exp(c)
            i = Mul(image, d)
            t = Mul(text, d)
            j = Add(i, t)
            y = Mul(j, d)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert [ops(stages, n).count("Exp") for n in names(stages)] == [1, 1, 1]
    assert {e.tensor for e in stages.edges} == {"i", "t"}


def test_random_numbers_are_drawn_once():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text) => (float[batch,3] a, float[batch,3] b) {
            noise = RandomNormal<shape = [1, 3]>()
            scaled = Exp(noise)
            a = Add(image, scaled)
            b = Add(text, scaled)
        }"""
    )
    feed = {"image": np.zeros((1, 3), np.float32), "text": np.zeros((1, 3), np.float32)}

    stages = partition(graph)
    result = run_stages(stages, feed)

    assert sum(op == "RandomNormal" for s in stages.stages for op in ops(stages, s.name)) == 1
    np.testing.assert_array_equal(result["a"], result["b"])


def test_a_constant_output_is_served_by_the_last_stage():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text) => (float[batch,3] y, float[3] w, float two) {
            y = Add(image, text)
            c = Constant<value_float = 2.0>()
            two = Identity(c)
        }""",
        weights={"w": np.arange(3, dtype=np.float32)},
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["fusion"]
    assert [o.name for o in stages.stages[0].outputs] == ["y", "w", "two"]


def test_a_model_that_reads_nothing_is_one_stage():
    graph = onnx_graph("g (float[batch,3] image) => (float[3] w) { }", weights={"w": np.ones(3, np.float32)})

    stages = partition_and_compare(graph, random_feed(graph))

    assert len(stages.stages) == 1
    assert stages.stages[0].inputs == ()


# --- outputs and inputs -------------------------------------------------------------------------------------


def test_an_output_that_is_an_input_is_served():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text) => (float[batch,3] image, float[batch,3] y) {
            y = Relu(text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert sorted(names(stages)) == ["image", "text"]


def test_an_intermediate_can_be_output_and_cut_tensor_at_once():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text) => (float[batch,3] i, float[batch,3] y) {
            i = Relu(image)
            y = Add(i, text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert [o.name for o in stages.stage("image").outputs] == ["i"]
    assert read_by(stages, "fusion") == ["text", "i"]


def test_unused_inputs_and_dead_nodes_are_read_by_no_stage():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text, float[batch,3] spare) => (float[batch,3] y) {
            dead = Add(image, spare)
            y = Add(image, text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["fusion"]
    assert read_by(stages, "fusion") == ["image", "text"]


def test_one_modality_may_have_several_inputs():
    graph = onnx_graph(
        """g (int64[batch,4] input_ids, int64[batch,4] attention_mask, float[batch,4] image)
              => (float[batch,4] y) {
            i = Cast<to=1>(input_ids)
            m = Cast<to=1>(attention_mask)
            t = Mul(i, m)
            y = Add(t, image)
        }""",
        {"input_ids": "text", "attention_mask": "text", "image": "image"},
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["text", "fusion"]
    assert [j.op for j in stages.joins] == ["Add"]
    assert stages.joins[0].sources == ("text", "image")


def test_three_modalities_in_two_levels():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] audio, float[batch,3] text) => (float[batch,3] y) {
            i = Relu(image)
            a = Tanh(audio)
            t = Sigmoid(text)
            av = Add(i, a)
            z = Relu(av)
            y = Concat<axis=1>(z, t)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["image", "audio", "text", "image+audio", "image+audio+text"]
    assert [(j.kind, j.sources) for j in stages.joins] == [
        ("add", ("image", "audio")),
        ("concat", ("image+audio", "text")),
    ]


def test_stage_names_are_safe_file_names_and_unique():
    graph = onnx_graph(
        """g (float[batch,3] a, float[batch,3] b, float[batch,3] c) => (float[batch,3] y, float[batch,3] z) {
            u = Relu(a)
            v = Relu(b)
            z = Relu(c)
            y = Add(u, v)
        }""",
        {"a": "../front camera", "b": "fusion", "c": "Fusion"},
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["_front_camera", "fusion", "Fusion_2", "fusion_3"]


# --- control flow -------------------------------------------------------------------------------------------


def test_values_captured_by_if_are_inputs():
    graph = onnx_graph(
        """g (float[batch,3] image, float[batch,3] text) => (float[batch,3] y) {
            i = Relu(image)
            t = Tanh(text)
            m = ReduceSum<keepdims=0>(i)
            zero = Constant<value_float = 0.0>()
            c = Greater(m, zero)
            y = If (c) <
                then_branch = then_graph () => (float[batch,3] p) { p = Add(i, w) },
                else_branch = else_graph () => (float[batch,3] q) { q = Sub(t, w) }
            >
        }""",
        weights={"w": np.ones(3, np.float32)},
    )
    feeds = [{"image": np.full((2, 3), v, np.float32), "text": np.ones((2, 3), np.float32)} for v in (-1, 1)]

    stages = partition_and_compare(graph, *feeds)

    assert names(stages) == ["image", "text", "fusion"]
    assert set(read_by(stages, "fusion")) == {"i", "t", "c"}
    assert [(j.op, j.kind) for j in stages.joins] == [("If", "if")]


def test_values_captured_by_a_loop_in_an_if_are_inputs():
    graph = onnx_graph(
        """g (float[2,3] image, float[2,3] text) => (float[2,3] y) {
            i = Relu(image)
            t = Tanh(text)
            n = Constant<value_int = 3>()
            yes = Constant<value = bool {1}>()
            y = If (yes) <
                then_branch = outer () => (float[2,3] p) {
                    p = Loop (n, yes, i) <body = inner (int64 k, bool go, float[2,3] acc)
                        => (bool on, float[2,3] out) {
                        on = Identity(go)
                        out = Add(acc, t)
                    }>
                },
                else_branch = other () => (float[2,3] q) { q = Identity(i) }
            >
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["image", "text", "fusion"]
    assert set(read_by(stages, "fusion")) == {"i", "t"}


def test_scan_over_one_modality_stays_in_its_encoder():
    graph = onnx_graph(
        """g (float[5,3] imu, float[3] image) => (float[3] y) {
            start = Constant<value = float[3] {0.0, 0.0, 0.0}>()
            last, all = Scan (start, imu) <num_scan_inputs = 1, body = b (float[3] s, float[3] x)
                => (float[3] s1, float[3] o) { s1 = Add(s, x) o = Identity(s1) }>
            y = Mul(last, image)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["imu", "fusion"]


# --- types --------------------------------------------------------------------------------------------------


def test_a_tensor_list_does_not_cross_a_cut():
    graph = onnx_graph(
        """g (float[batch,4] image, float[batch,2] text) => (float[batch,2] y) {
            i = Relu(image)
            two = Constant<value_int = 2>()
            parts = SplitToSequence<axis=1>(i, two)
            r = ReduceSum<keepdims=0>(text)
            zero = Constant<value_float = 0.0>()
            c = Greater(r, zero)
            n = Cast<to=7>(c)
            part = SequenceAt(parts, n)
            y = Add(part, text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph, seed=1), random_feed(graph, seed=2))

    assert read_by(stages, "fusion")[-1] == "i" or "n" in read_by(stages, "fusion")
    assert all("float" in i.dtype or "int" in i.dtype for s in stages.stages for i in s.inputs)
    assert any("'parts' is no tensor" in n for n in stages.notes)


def test_types_of_foreign_operators_come_from_onnxruntime():
    graph = onnx_graph(
        """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
        g (float[batch,4] image, float[batch,4] text) => (float[batch,4] y) {
            i = com.microsoft.FastGelu(image)
            y = Add(i, text)
        }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert stages.stage("image").outputs[0].dtype == "float32"
    assert len(stages.stage("image").outputs[0].shape) == 2
    assert "com.microsoft" in stages.stage("image").model.graph.opset_imports
    assert "com.microsoft" not in stages.stage("fusion").model.graph.opset_imports


def test_half_precision_differs_by_its_own_rounding_at_most():
    # onnxruntime computes float16 nodes in float32 on a CPU and rounds only where the chain of them ends
    graph = onnx_graph(
        """g (float16[batch,4] image, float16[batch,4] text) => (float16[batch,4] y) {
            i = Exp(image)
            t = Tanh(text)
            m = Mul(i, t)
            y = Add(m, i)
        }"""
    )
    feed = random_feed(graph, batch=64)

    stages = partition(graph)

    assert stages.stage("image").outputs[0].dtype == "float16"
    np.testing.assert_allclose(run_stages(stages, feed)["y"], run_whole(graph, feed)["y"], rtol=4e-3, atol=4e-3)


def test_local_functions_are_inlined():
    graph = onnx_graph(
        """<ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (float[batch,4] image, float[batch,4] text) => (float[batch,4] y) {
            i = local.encode(image)
            t = local.encode(text)
            y = Add(i, t)
        }
        <opset_import: ["": 20], domain: "local">
        encode (x) => (y) { z = Relu(x) y = Tanh(z) }"""
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert names(stages) == ["image", "text", "fusion"]
    assert ops(stages, "image") == ["Relu", "Tanh"]


def test_names_and_metadata_of_nodes_survive():
    graph = concat_model()
    node = next(iter(graph.model.graph))
    node.name, node.metadata_props["namespace"] = "image/proj", "model.image.proj"

    kept = next(iter(partition(graph).stage("image").model.graph))

    assert (kept.name, kept.metadata_props["namespace"]) == ("image/proj", "model.image.proj")
    del node.metadata_props["namespace"]
    node.name = None


def test_unnamed_nodes_get_names():
    x, y = (ir.Value(name=n, shape=ir.Shape(["batch", 3]), type=ir.TensorType(ir.DataType.FLOAT)) for n in "xy")
    first = ir.Node("", "Relu", [x], name="")
    second = ir.Node("", "Add", [first.outputs[0], y], name="")
    third = ir.Node("", "Tanh", [second.outputs[0]], name="")
    third.outputs[0].name, third.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    third.outputs[0].shape = ir.Shape(["batch", 3])
    model = ir.Model(
        ir.Graph([x, y], third.outputs, nodes=[first, second, third], opset_imports={"": 20}, name="g"),
        ir_version=10,
    )

    stages = partition(exported(model))

    node_names = [n.name for s in stages.stages for n in s.model.graph]
    assert names(stages) == ["x", "fusion"]
    assert len(set(node_names)) == 3
    feed = {n: np.ones((2, 3), np.float32) for n in "xy"}
    np.testing.assert_array_equal(run_stages(stages, feed)["z"], np.tanh(np.full((2, 3), 2, np.float32)))
    onnx.checker.check_model(ir.to_proto(stages.stages[0].model))


# --- joins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("j = Mul(i, t)", ["product"]),
        ("g = Softmax(t) u = Unsqueeze(g, one) s = Squeeze(u, one) j = Mul(i, s)", ["gate"]),
        ("g = Tanh(i) h = Tanh(t) j = Mul(g, h)", ["product"]),
        ("h = Constant<value_float = 0.5>() a = Mul(i, h) j = Add(a, t)", ["weighted sum"]),
        ("a = Mul(i, gamma) j = Add(a, t)", ["add"]),
        ("j = Sum(i, t)", ["add"]),
        ("j = Max(i, t)", ["max"]),
        ("z = Constant<value_float = 0.0>() c = Greater(i, z) j = Where(c, t, t)", ["select"]),
        ("u = Transpose(t) m = MatMul(i, u) j = MatMul(m, t)", ["bilinear", "bilinear"]),
        ("u = Transpose(t) m = MatMul(i, u) n = Softmax(m) j = MatMul(n, t)", ["attention", "attention"]),
        (
            "o = Constant<value_float = 1.0>() g = Sigmoid(t) r = Sub(o, g)"
            " a = Mul(g, i) b = Mul(r, t) j = Add(a, b)",
            ["gate", "add"],  # the Add joins what the gate let through with the rest of the text
        ),
    ],
)
def test_join_kinds(body, kinds):
    graph = onnx_graph(
        f"g (float[3,3] image, float[3,3] text) => (float[3,3] j) {{ i = Relu(image) t = Relu(text) {body} }}",
        weights={"one": np.array([0], np.int64), "gamma": np.ones(3, np.float32)},
    )

    stages = partition_and_compare(graph, random_feed(graph))

    assert [j.kind for j in stages.joins] == kinds
