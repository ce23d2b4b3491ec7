"""Every rewrite rule: how often it applies, when it declines, and that onnxruntime computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from builders import concat_model, onnx_graph, random_feed, run_whole, torch_graph
from rewriting import ops, rewrite_and_compare, weights
from torch import nn

from edgemm.graph import digest
from edgemm.partition import partition
from edgemm.rewrite import rewrite

NORM = {"scale": (6,), "bias": (6,), "mean": (6,), "var": (6,)}


@pytest.mark.parametrize(
    ("node", "shapes", "image"),
    [
        ("Conv(x, w)", {"w": (6, 4, 3, 3)}, "4,5,5"),
        ("Conv(x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}, "4,5,5"),
        ("Conv<group=2>(x, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}, "4,5,5"),
        ('Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', {"w": (6, 4, 3, 3)}, "4,5,5"),
        ("Conv(x, w, b)", {"w": (6, 4, 3), "b": (6,)}, "4,5"),
        ("ConvTranspose(x, w, b)", {"w": (4, 6, 3, 3), "b": (6,)}, "4,5,5"),
        ("ConvTranspose<group=2>(x, w)", {"w": (4, 3, 3, 3)}, "4,5,5"),
        ("Gemm(x, w, b)", {"w": (4, 6), "b": (6,)}, "4"),
        ("Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)", {"w": (6, 4), "b": (1, 6)}, "4"),
        ("Gemm(x, w)", {"w": (4, 6)}, "4"),
    ],
)
def test_batch_norm_folds(node, shapes, image):
    graph = onnx_graph(
        f"""g (float[batch,{image}] x) => (float y) {{
            a = {node}
            n = BatchNormalization<epsilon=0.01>(a, scale, bias, mean, var)
            y = Relu(n)
        }}""",
        weights=weights(**shapes, **NORM),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph), tolerance=2e-5)

    assert log["fold batch norm"] == "1"
    assert ops(result) == [node.split("(")[0].split("<")[0], "Relu"]
    assert all(len(v.uses()) for v in result.model.graph.initializers.values())


def test_batch_norm_that_is_an_output_keeps_its_name_and_the_conv_its_own():
    graph = onnx_graph(
        """g (float[batch,4,5,5] x) => (float[batch,6,3,3] y) {
            a = Conv(x, w)
            y = BatchNormalization(a, scale, bias, mean, var)
        }""",
        weights=weights(w=(6, 4, 3, 3), **NORM),
    )
    graph.model.graph[0].name = "image/conv1"

    result, _ = rewrite_and_compare(graph, random_feed(graph), tolerance=2e-5)

    assert [n.name for n in result.model.graph] == ["image/conv1"]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        # the value in between is an output
        ("y = Conv(x, w) z = BatchNormalization(y, scale, bias, mean, var)", None),
        # ... or used elsewhere
        ("a = Conv(x, w) z = BatchNormalization(a, scale, bias, mean, var) y = Relu(a)", None),
        # nothing to fold into
        ("y = Relu(x) a = Conv(x, w) r = Relu(a) z = BatchNormalization(r, scale, bias, mean, var)", None),
        # a weight is shared: both results must be right
        ("a = Conv(x, w) z = BatchNormalization(a, scale, bias, mean, var) y = Conv(x, w, bias)", "1"),
        # a weight is an input
        ("y = Relu(x) a = Conv(x, k) z = BatchNormalization(a, scale, bias, mean, var)", None),
    ],
)
def test_batch_norm_stays_or_leaves_shared_weights_alone(body, count):
    graph = onnx_graph(
        f"g (float[batch,4,5,5] x, float[6,4,3,3] k) => (float y, float z) {{ {body} }}",
        weights=weights(w=(6, 4, 3, 3), **NORM),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph), tolerance=2e-5)

    assert log.get("fold batch norm") == count
    assert ("BatchNormalization" in ops(result)) == (count is None)


def test_batch_norm_in_training_mode_stays():
    graph = onnx_graph(
        """g (float[batch,4,5,5] x) => (float y) {
            a = Conv(x, w)
            y, m, v = BatchNormalization<training_mode=1>(a, scale, bias, mean, var)
        }""",
        weights=weights(w=(6, 4, 3, 3), **NORM),
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph))

    assert "BatchNormalization" in ops(result)


def test_constants_fold_and_lift():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float[batch,4] y) {
            two = Constant<value_float = 2.0>()
            three = Constant<value = float[4] {3.0, 3.0, 3.0, 3.0}>()
            six = Mul(two, three)
            a = Mul(x, six)
            y = Add(a, three)
        }"""
    )

    result, log = rewrite_and_compare(graph, random_feed(graph))

    assert ops(result) == ["Mul", "Add"]
    assert int(log["lift constants"]) == 2
    assert int(log["fold constants"]) == 1


def test_large_constants_are_not_expanded_and_random_numbers_not_frozen():
    graph = onnx_graph(
        """g (float[1,4] x) => (float[300,300] y, float[1,4] z) {
            shape = Constant<value_ints = [300, 300]>()
            one = Constant<value_float = 1.0>()
            big = Expand(one, shape)
            m = ReduceMean<keepdims=0>(x)
            y = Mul(big, m)
            p = Constant<value = float[1,4] {0.5, 0.5, 0.5, 0.5}>()
            r = Bernoulli<seed = 1.0>(p)
            s = Bernoulli<seed = 2.0>(p)
            t = Add(r, s)
            z = Mul(t, x)
        }"""
    )

    result, _ = rewrite_and_compare(graph)

    assert "Expand" in ops(result)
    assert ops(result).count("Bernoulli") == 2


def test_a_constant_result_that_is_an_output_stays_made_by_a_node():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float y, float[4] w, float[4] v) {
            two = Constant<value_float = 2.0>()
            y = Mul(two, two)
            v = Identity(w)
        }""",
        weights=weights(w=(4,)),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph))

    assert all(v.producer() is not None for v in result.model.graph.outputs)
    assert log["serve outputs"] == "1"


def test_static_shapes_fold_and_dynamic_ones_stay_dynamic():
    graph = onnx_graph(
        """g (float[batch,3,4] x) => (float y, float z) {
            s = Shape(x)
            i = Constant<value_ints = [0]>()
            b = Gather(s, i)
            m = Constant<value_ints = [7]>()
            t = Concat<axis=0>(m, b)
            w = ReduceSum<keepdims=0>(x)
            y = Expand(w, t)
            c = Shape<start=1, end=2>(x)
            f = Cast<to=1>(c)
            z = Div(x, f)
        }"""
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert ops(result).count("Shape") == 1
    assert "Cast" not in ops(result)


def test_identities_go_unless_they_name_an_output():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float[batch,4] a, float[batch,4] b, float[batch,4] c, float[batch,4] d) {
            i = Identity(x)
            j = Identity(i)
            r = Relu(j)
            a = Identity(r)
            b = Identity(r)
            c = Identity(x)
            t = Tanh(r)
            d = Identity(t)
        }"""
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph))

    assert sorted(ops(result)) == ["Identity", "Identity", "Relu", "Tanh"]
    assert [v.name for v in result.model.graph.outputs] == ["a", "b", "c", "d"]


def test_an_identity_that_hands_an_outer_value_out_of_a_branch_stays():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float[batch,4] y) {
            r = Relu(x)
            m = ReduceSum<keepdims=0>(x)
            zero = Constant<value_float = 0.0>()
            c = Greater(m, zero)
            y = If (c) <
                then_branch = a () => (float[batch,4] p) { p = Identity(r) },
                else_branch = b () => (float[batch,4] q) { n = Identity(r) q = Neg(n) }
            >
        }"""
    )
    feeds = [{"x": np.full((2, 4), v, np.float32)} for v in (-1, 1)]

    result, _ = rewrite_and_compare(graph, *feeds)

    branches = result.model.graph[-1].attributes
    assert [n.op_type for n in branches["then_branch"].as_graph()] == ["Identity"]
    assert [n.op_type for n in branches["else_branch"].as_graph()] == ["Neg"]


def test_a_branch_with_a_known_condition_is_inlined():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float[batch,4] y, float[batch,4] r) {
            r = Relu(x)
            c = Constant<value = bool {1}>()
            y = If (c) <
                then_branch = a () => (float[batch,4] p) { k = Constant<value_float = 3.0>() p = Mul(r, k) },
                else_branch = b () => (float[batch,4] q) { q = Neg(r) }
            >
        }"""
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph))

    assert ops(result) == ["Relu", "Mul"]


def test_duplicates_merge_and_two_outputs_stay_two():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float[batch,4] y, float[batch,4] z) {
            one = Constant<value_float = 1.0>()
            uno = Constant<value_float = 1.0>()
            a = Add(x, one)
            b = Add(x, uno)
            y = Relu(a)
            z = Relu(b)
        }"""
    )

    result, log = rewrite_and_compare(graph, random_feed(graph))

    assert sorted(ops(result)) == ["Add", "Identity", "Relu"]
    assert int(log["merge duplicates"]) >= 2


def test_weights_of_an_encoder_that_reads_two_inputs_are_stored_once():
    """Folding a batch norm makes two weights of one that both sides read; they are equal."""
    made = weights(w=(8, 3, 3, 3), scale=(8,), bias=(8,), mean=(8,))
    graph = onnx_graph(
        """g (float[batch,3,8,8] left, float[batch,3,8,8] right) => (float[batch,8,6,6] y) {
            l = Conv(left, w)
            r = Conv(right, w)
            variance = Mul(scale, scale)
            ln = BatchNormalization(l, scale, bias, mean, variance)
            rn = BatchNormalization(r, scale, bias, mean, variance)
            y = Sub(ln, rn)
        }""",
        weights=made,
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph), tolerance=1e-4)

    assert sorted(ops(result)) == ["Conv", "Conv", "Sub"]
    assert sorted(v.shape.rank() for v in result.model.graph.initializers.values()) == [1, 4]


def test_what_no_output_needs_goes_and_unused_inputs_stay():
    graph = onnx_graph(
        """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
        g (float[batch,4] x, float[batch,4] spare) => (float[batch,4] y) {
            dead = com.microsoft.FastGelu(spare)
            worse = Add(dead, w)
            y = Relu(x)
        }""",
        weights=weights(w=(4,)),
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph))

    assert ops(result) == ["Relu"]
    assert [v.name for v in result.model.graph.inputs] == ["x", "spare"]
    assert list(result.model.graph.initializers) == []
    assert list(result.model.graph.opset_imports) == [""]


def test_local_functions_are_inlined_and_nodes_named_uniquely():
    graph = onnx_graph(
        """<ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (float[batch,4] x) => (float[batch,4] y) { a = local.f(x) y = local.f(a) }
        <opset_import: ["": 20], domain: "local"> f (x) => (y) { z = Relu(x) y = Tanh(z) }"""
    )

    result, log = rewrite_and_compare(graph, random_feed(graph))

    assert log["inline functions"] == "1"
    assert ops(result) == ["Relu", "Tanh", "Relu", "Tanh"]
    node_names = [n.name for n in result.model.graph]
    assert all(node_names)
    assert len(set(node_names)) == 4


def test_weights_that_an_old_file_lists_as_inputs_become_weights():
    graph = onnx_graph(
        """<ir_version: 3, opset_import: ["": 9]>
        g (float[batch,4] x, float[4,2] w) => (float[batch,2] y) { y = MatMul(x, w) }""",
        weights=weights(w=(4, 2)),
    )
    io = graph.io.__class__(graph.io.inputs[:1], graph.io.outputs, {"x": "x"})
    graph = graph.__class__(graph.model, io)

    result, log = rewrite(graph)

    assert log == ("drop weight inputs: 1", "name uniquely: 1")
    assert [v.name for v in result.model.graph.inputs] == ["x"]
    assert result.model.ir_version >= 4
    feed = random_feed(graph)
    np.testing.assert_array_equal(run_whole(result, feed)["y"], run_whole(graph, feed)["y"])


def test_exporter_notes_go_and_module_paths_and_user_metadata_stay():
    graph = concat_model()
    model = graph.model.clone()
    node = model.graph[0]
    node.metadata_props.update(
        {"pkg.torch.onnx.stack_trace": "File /home/me/x.py", "namespace": "m.image", "mine": "1"}
    )
    node.doc_string = "File /home/me/x.py"
    model.metadata_props.update({"author": "me", "pkg.torch.export.ExportedProgram": "..."})

    result, _ = rewrite(graph.__class__(model, graph.io))

    assert result.model.graph[0].metadata_props == {"namespace": "m.image", "mine": "1"}
    assert result.model.graph[0].doc_string is None
    assert result.model.metadata_props == {"author": "me"}
    assert b"/home/me" not in ir.to_proto(result.model).SerializeToString()
    assert node.doc_string is not None


def test_missing_shapes_are_filled_and_known_symbols_stay():
    graph = onnx_graph(
        """g (float[batch,4] x) => (float y) { a = MatMul(x, w) y = Relu(a) }""",
        weights=weights(w=(4, 2)),
    )

    result, log = rewrite(graph)

    assert "infer shapes" in dict(line.split(": ") for line in log)
    assert str(result.model.graph[0].outputs[0].shape) == "[batch,2]"


def test_weights_are_shared_and_a_second_rewrite_changes_nothing():
    graph = concat_model()

    once, _ = rewrite(graph)
    twice, log = rewrite(once)

    tensors = {n: v.const_value for n, v in graph.model.graph.initializers.items()}
    assert all(v.const_value is tensors[n] for n, v in once.model.graph.initializers.items())
    assert log == ()
    assert digest(once.model) == digest(twice.model)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(4 * 36 + 5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def forward(self, image, audio):
        import torch

        return self.head(torch.cat([self.image(image), audio], 1))


def test_a_torch_model_is_rewritten_and_then_partitioned():
    import torch

    torch.manual_seed(0)
    module = ConvNet()
    module.image[1].running_mean.uniform_(-1, 1)
    module.head[1].running_var.uniform_(0.5, 2)
    graph = torch_graph(module, {"image": torch.randn(2, 3, 8, 8), "audio": torch.randn(2, 5)})

    result, _ = rewrite_and_compare(
        graph, random_feed(graph, batch=1), random_feed(graph, batch=4), tolerance=1e-5
    )

    assert "BatchNormalization" not in ops(result)
    assert [s.name for s in partition(result).stages] == ["image", "fusion"]
    assert b".py" not in ir.to_proto(result.model).SerializeToString()
