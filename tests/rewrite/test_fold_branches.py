"""An If that needs no choice goes; one that does keeps both branches, which repeat nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import onnx_graph, random_feed
from rewriting import ops, rewrite_and_compare, weights

from edgemm.graph import serialize

W = {**weights(w=(4, 4), v=(4, 4)), "four": np.array(4), "one": np.array(1), "zero": np.array(0)}
CHOICE = """y = If (c) <
    then_branch = t () => (float[batch,4] a) {{ {then} }},
    else_branch = e () => (float[batch,4] b) {{ {other} }}>"""


THEN = "a1 = MatMul(x, w) a = Relu(a1)"
OTHER = "b1 = MatMul(x, v) b = Relu(b1)"


def fold(condition, then=THEN, other=OTHER, *, count, **more):
    """Returns the rewritten graph, after comparing count, numbers, signature and the checker."""
    text = f"g (float[batch,4] x) => (float[batch,4] y) {{ {condition} {CHOICE.format(then=then, other=other)} }}"
    graph = onnx_graph(text, weights=W | more)
    feed = random_feed(graph)
    positive, negative = ({"x": sign * np.abs(feed["x"])} for sign in (1, -1))
    result, log = rewrite_and_compare(graph, positive, negative, tolerance=1e-6)
    assert log.get("fold branches", "0") == str(count)
    onnx.checker.check_model(onnx.load_from_string(serialize(result.model)), full_check=True)
    return result


def inside(graph):
    """Returns the operators of both branches of the only If."""
    (choice,) = [n for n in graph.model.graph if n.op_type == "If"]
    return [[n.op_type for n in choice.attributes[b].as_graph()] for b in ("then_branch", "else_branch")]


@pytest.mark.parametrize(
    ("condition", "nodes"),
    [
        ("s = Shape(x) d = Gather(s, one) c = Equal(d, four)", ["MatMul", "Relu"]),
        ("s = Shape(x) d = Gather(s, one) l = Less(d, four) c = Not(l)", ["MatMul", "Relu"]),
        ("s = Shape(x) d = Gather(s, one) c = Greater(d, four)", ["MatMul", "Tanh"]),
    ],
    ids=["equal", "not less", "not greater"],
)
def test_condition_on_fixed_dimensions_is_known(condition, nodes):
    assert ops(fold(condition, other="b1 = MatMul(x, v) b = Tanh(b1)", count=1)) == nodes


SIGN = "m = ReduceSum<keepdims=0>(x) f = Constant<value_float=0.0>() c = Greater(m, f)"


@pytest.mark.parametrize(
    "condition", [SIGN, "s = Shape(x) d = Gather(s, zero) c = Equal(d, one)"], ids=["values", "batch"]
)
def test_condition_on_values_or_a_dynamic_dimension_stays(condition):
    assert inside(fold(condition, count=0)) == [["MatMul", "Relu"], ["MatMul", "Relu"]]


def test_branches_that_are_equal_up_to_names_are_one():
    copy = W["w"].copy()
    graph = fold(SIGN, other="b1 = MatMul(x, copy) b = Relu(b1)", count=1, copy=copy)
    assert ops(graph) == ["MatMul", "Relu"]


@pytest.mark.parametrize(
    "other", ["b1 = MatMul(x, w) b = LeakyRelu(b1)", "b1 = MatMul(w, w) b = Relu(b1)", "b = Relu(x)"]
)
def test_branches_that_differ_anywhere_stay(other):
    assert ops(fold(SIGN, other=other.replace("MatMul(w, w)", "MatMul(x, v)"), count=0)).count("If") == 1


def test_random_branches_are_two_draws():
    draw = "{0}1 = RandomUniformLike<low=1.0, high=1.0>(x) {0} = Mul({0}1, x)"
    assert inside(fold(SIGN, draw.format("a"), draw.format("b"), count=0))[0] == ["RandomUniformLike", "Mul"]


def test_what_is_computed_outside_is_read_from_there():
    graph = fold(f"o = MatMul(x, w) {SIGN.replace('(x)', '(o)')}", count=1)
    assert inside(graph) == [["Relu"], ["MatMul", "Relu"]]


def test_result_of_a_branch_is_computed_in_it():
    graph = fold(f"o = MatMul(x, w) {SIGN.replace('(x)', '(o)')}", then="a = MatMul(x, w)", count=0)
    assert inside(graph)[0] == ["MatMul"]
