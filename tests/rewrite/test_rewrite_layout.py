"""Shape arithmetic and layout chains: what is left, that it computes the same bits, and what must stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from builders import onnx_graph, random_feed
from hypothesis import given
from hypothesis import strategies as st
from rewriting import ops, rewrite_and_compare, weights

from edgemm.rewrite import dims, layout
from edgemm.rewrite.dims import Dim

CHAINS = [
    # inverse transposes, identity, reshape of reshape
    ("float[batch,3,4] x", "a = Transpose<perm=[0,2,1]>(x) c = Transpose<perm=[0,2,1]>(a)", ["Relu"]),
    ("float[batch,3,4] x", "c = Transpose<perm=[0,1,2]>(x)", ["Relu"]),
    ("float[batch,3,4] x", "s = Constant<value_ints=[0,3,4]>() c = Reshape(x, s)", ["Relu"]),
    (
        "float[batch,3,4] x",
        "s = Constant<value_ints=[-1]>() a = Reshape(x, s) t = Constant<value_ints=[-1,12]>() c = Reshape(a, t)",
        ["Reshape", "Relu"],
    ),
    # two transposes are one
    (
        "float[batch,3,4,5] x",
        "a = Transpose<perm=[0,2,1,3]>(x) c = Transpose<perm=[0,1,3,2]>(a)",
        ["Transpose", "Relu"],
    ),
    # dimensions of 1 move for nothing
    (
        "float[batch,3,4] x",
        """i = Constant<value_ints=[1]>() a = Unsqueeze(x, i) b = Transpose<perm=[0,2,1,3]>(a)
           j = Constant<value_ints=[2]>() c = Squeeze(b, j)""",
        ["Relu"],
    ),
    # heads cut out over the batch and put back, as torch.nn.MultiheadAttention does
    (
        "float[9,batch,8] x",
        """s = Constant<value_ints=[9,-1,4]>() a = Reshape(x, s) b = Transpose<perm=[1,0,2]>(a)
           t = Constant<value_ints=[-1,2,9,4]>() c = Reshape(b, t)""",
        ["Reshape", "Transpose", "Relu"],
    ),
    (
        "float[batch,3,4] x",
        "a = Flatten<axis=2>(x) s = Constant<value_ints=[-1,3,4]>() c = Reshape(a, s)",
        ["Relu"],
    ),
]


@pytest.mark.parametrize(("declared", "chain", "left"), CHAINS)
def test_chains_become_the_shortest_that_does_the_same(declared, chain, left):
    graph = onnx_graph(f"g ({declared}) => (float y) {{ {chain} y = Relu(c) }}")

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert ops(result) == left
    assert "simplify layout" in log


@pytest.mark.parametrize(
    "chain",
    [
        # one transpose is one transpose
        "c = Transpose<perm=[0,2,1]>(x) y = Relu(c)",
        # what is between is read elsewhere: nothing is saved
        "a = Transpose<perm=[0,2,1]>(x) c = Transpose<perm=[2,0,1]>(a) d = Relu(c) e = Relu(a) "
        "f = Transpose<perm=[1,0,2]>(d) y = MatMul(e, w)",
        # an output needs a node that makes it
        "a = Relu(x) y = Transpose<perm=[0,2,1]>(a)",
        # the dimensions are unknown
        "s = Shape(v) a = Reshape(x, s) t = Constant<value_ints=[-1,4]>() y = Reshape(a, t)",
    ],
)
def test_chains_that_cannot_be_shorter_stay(chain):
    graph = onnx_graph(
        f"g (float[batch,3,4] x, float[batch,many,n] v) => (float y) {{ {chain} }}", weights=weights(w=(3, 2))
    )

    result, log = rewrite_and_compare(graph, random_feed(graph, many=3, n=4))

    assert "simplify layout" not in log
    assert len(ops(result)) <= len(graph.model.graph)


@st.composite
def chains(draw):
    """A chain of reshapes and transposes from [batch, 4, 6, 2], with the shapes on the way."""
    shape = (Dim(1, ("batch",)), Dim(4), Dim(6), Dim(2))
    lines, shapes = [], [shape]
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            perm = draw(st.permutations(range(len(shape))))
            shape = tuple(shape[p] for p in perm)
            lines.append(("Transpose", perm))
        else:
            shape = draw(st.sampled_from(_cuts(shape)))
            lines.append(("Reshape", shape))
        shapes.append(shape)
    return lines, shapes


def _cuts(shape):
    """Every shape that joins two neighbours, splits a dimension by 2, or adds a 1."""
    joined = [(*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :]) for i in range(len(shape) - 1)]
    split = [(*shape[:i], Dim(2), d.over(Dim(2)), *shape[i + 1 :]) for i, d in enumerate(shape) if _even(d)]
    return [*joined, *split, (*shape, dims.ONE)]


def _even(dim):
    return not dim.symbols and dim.size % 2 == 0  # half a batch is no dimension


@given(chains())
def test_every_chain_of_three_steps_or_fewer_computes_the_same(chain):
    steps, shapes = chain
    value = ir.Value(name="x", shape=dims.shape(shapes[0]), type=ir.TensorType(ir.DataType.FLOAT))
    found = layout.start(value)
    array = np.arange(3 * 48, dtype=np.float32).reshape(3, 4, 6, 2)
    expected = array
    for (op, what), shape in zip(steps, shapes[1:], strict=True):
        size = [d.size * 3 ** len(d.symbols) for d in shape]
        expected = expected.transpose(what) if op == "Transpose" else expected.reshape(size)
        node = ir.node(op, [value], {"perm": what} if op == "Transpose" else {})
        node.outputs[0].shape = dims.shape(shape)
        found = layout.step(found, node)
        assert found is not None

    way = layout.steps(found)

    assert way is not None
    assert len(way) <= 3
    got = array
    at = shapes[0]
    for op, shape, perm in way:
        got = got.transpose(perm) if op == "Transpose" else got.reshape(_filled(dims.target(at, shape), got.shape))
        at = shape
    np.testing.assert_array_equal(got, expected)


def _filled(numbers, source):
    return [source[i] if n == 0 else n for i, n in enumerate(numbers)]


def test_shape_arithmetic_becomes_a_constant_and_keeps_the_batch_open():
    graph = onnx_graph(
        """g (float[batch,6,4] x) => (float y) {
            s = Shape(x) i = Constant<value_ints=[0]>() j = Constant<value_ints=[1]>()
            k = Constant<value_ints=[2]>()
            b = Slice(s, i, j) d = Slice(s, j, k) two = Constant<value_ints=[2]>() h = Div(d, two)
            e = Constant<value_ints=[4]>() t = Concat<axis=0>(b, two, h, e)
            r = Reshape(x, t) y = Transpose<perm=[0,2,1,3]>(r)
        }"""
    )

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    assert ops(result) == ["Reshape", "Transpose"]
    assert int(log["fold shapes"]) >= 2


def test_an_expand_to_the_shape_that_is_there_goes_and_one_over_the_batch_stays():
    graph = onnx_graph(
        """g (float[batch,1,4] x) => (float y, float z) {
            s = Shape(x) a = Expand(x, s) y = Relu(a)
            i = Constant<value_ints=[0]>() b = Gather(s, i) t = Concat<axis=0>(b, i1, i4)
            c = Expand(w, t) z = Concat<axis=1>(c, x)
        }""",
        weights=weights(w=(4,)) | {"i1": np.array([1]), "i4": np.array([4])},
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=3))

    assert sorted(ops(result)) == ["Concat", "Concat", "Expand", "Gather", "Relu", "Shape"]


def test_an_open_shape_that_is_no_product_is_left_to_run():
    graph = onnx_graph(
        """g (float[batch,4] x, float[batch,4] v) => (float y) {
            s = Shape(x) one = Constant<value_ints=[1]>() t = Shape(v) u = Add(s, one) r = Sub(u, one)
            a = Add(x, v) y = Reshape(a, r)
        }"""
    )

    result, _ = rewrite_and_compare(graph, random_feed(graph, batch=3))

    assert "Shape" in ops(result)


@pytest.mark.parametrize(("size", "count"), [((288, 96), 1), ((3000, 96), 1)])
def test_weights_that_are_split_and_transposed_are_stored_that_way(size, count):
    graph = onnx_graph(
        """g (float[batch,96] x) => (float y, float z) {
            p, q = Split<axis=0, num_outputs=2>(w)
            s = Transpose<perm=[1,0]>(p) t = Transpose<perm=[1,0]>(q)
            y = MatMul(x, s) z = MatMul(x, t)
        }""",
        weights=weights(w=size),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph), tolerance=1e-4)

    assert ops(result) == ["MatMul", "MatMul"]
    assert log["fold weights"] == str(count + 2)
    shapes = [tuple(v.shape) for v in result.model.graph.initializers.values()]
    assert shapes == [(96, size[0] // 2)] * 2


def test_a_large_weight_that_is_also_read_as_it_is_stays_one():
    graph = onnx_graph(
        "g (float[batch,300] x) => (float y) { t = Transpose<perm=[1,0]>(w) a = MatMul(x, t) y = MatMul(a, w) }",
        weights=weights(w=(300, 300)),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph), tolerance=1e-4)

    assert "Transpose" in ops(result)
    assert "fold weights" not in log


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("t = Transpose<perm=[1,0,2]>(x) y = ReduceMean<keepdims=0>(t, i0)", ["ReduceMean"]),
        (
            "u = Unsqueeze(x, n2) r = ReduceMean<keepdims=1>(u, last) q = Squeeze(r, n2) "
            "v = Reshape(q, flat) y = Relu(v)",
            ["ReduceMean", "Relu"],
        ),
        ("t = Transpose<perm=[1,0,2]>(x) g = Gather<axis=0>(t, m1) y = Relu(g)", ["Gather", "Relu"]),
        # the axes that stay change their order
        ("t = Transpose<perm=[2,1,0]>(x) r = ReduceMean<keepdims=0>(t, i1) y = Relu(r)", None),
        # an output keeps its node
        ("y = ReduceMean<keepdims=1>(x, i1)", None),
    ],
)
def test_reductions_read_what_was_rearranged_for_them(body, left):
    constants = {
        "i0": np.array([0]),
        "i1": np.array([1]),
        "n2": np.array([-2]),
        "last": np.array([-1, -2]),
        "flat": np.array([-1, 5]),
        "m1": np.array(-1),
    }
    graph = onnx_graph(f"g (float[batch,5,7] x) => (float out) {{ {body} out = Neg(y) }}", weights=constants)

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=4), tolerance=1e-6)

    assert ("reduce in place" in log) == (left is not None)
    assert ops(result) == [*left, "Neg"] if left is not None else ops(result)[-1] == "Neg"


STATE = {"w": (1, 12, 3), "r": (1, 12, 4), "b": (1, 24)}


@pytest.mark.parametrize(("fill", "count"), [("0.0", "1"), ("0.5", None)])
def test_a_state_of_zeros_goes_and_another_stays(fill, count):
    graph = onnx_graph(
        f"""g (float[6,batch,3] x) => (float y) {{
            s = Shape<start=1, end=2>(x) one = Constant<value_ints=[1]>() four = Constant<value_ints=[4]>()
            t = Concat<axis=0>(one, s, four) f = Constant<value_float={fill}>() h = Expand(f, t)
            y, n = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b, , h)
        }}""",
        weights=weights(**STATE),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=2), tolerance=1e-6)

    assert log.get("drop zero states") == count
    assert (ops(result) == ["GRU"]) == (count is not None)


MASK = """g (bool[batch,5] mask, float[batch,2,5,5] s) => (float y)
<int64[batch] r, int64[batch,1,1,1] c, int64[batch,1,1,5] t, bool[batch,1,1,5] m> {{
    n = Shape<start=0, end=1>(mask) k = Squeeze(n) z = Constant<value_int=0>() o = Constant<value_int=1>()
    r = Range(z, k, o) e = Constant<value_ints=[1,2,3]>() c = Unsqueeze(r, e)
    t = Max(c, cols) u = Shape(t) a = Expand(c, u) b = Expand(cols, u) l = Constant<value_ints=[-1]>()
    p = Unsqueeze(a, l) q = Unsqueeze(b, l) i = Concat<axis=-1>({order}) m = GatherND(mask, i)
    w = Where(m, zero, low) y = Add(s, w)
}}"""


@pytest.mark.parametrize(
    ("columns", "order", "count"),
    [
        (np.arange(5), "p, q", "1"),
        (np.arange(5)[::-1].copy(), "p, q", None),  # not in order
        (np.array([0, 1, 2, 3, 3]), "p, q", None),  # one column twice
    ],
)
def test_a_mask_gathered_in_order_is_reshaped(columns, order, count):
    constants = {
        "cols": columns.reshape(1, 1, 1, 5),
        "zero": np.array(0, np.float32),
        "low": np.array(-1e4, np.float32),
    }
    graph = onnx_graph(MASK.format(order=order), weights=constants)

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=3))

    assert log.get("read masks directly") == count
    assert ("GatherND" in ops(result)) == (count is None)


@pytest.mark.parametrize(
    ("mask", "low", "count"),
    [
        ("w = Where(mask, zero, low)", -3.4e38, "1"),
        ("w = Where(mask, zero, low)", -np.inf, None),  # a row may be blank
        ("w = Identity(causal)", 0.0, "1"),  # every row has a finite number
        ("w = Identity(blank)", 0.0, None),
        ("w = Cast<to=1>(mask)", 0.0, None),  # nothing is known of it
    ],
)
def test_nan_guards_go_where_no_row_can_be_blank(mask, low, count):
    causal = np.triu(np.full((3, 3), -np.inf, np.float32), 1)
    blank = causal.copy()
    blank[1] = -np.inf
    constants = {
        "zero": np.array(0, np.float32),
        "low": np.array(low, np.float32),
        "causal": causal,
        "blank": blank,
    }
    graph = onnx_graph(
        f"""g (float[batch,3,4] q, bool[batch,1,3] mask) => (float y) {{
            k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k) {mask} a = Add(s, w)
            p = Softmax<axis=-1>(a) n = IsNaN(p) g = Where(n, zero, p) y = MatMul(g, q)
        }}""",
        weights=constants,
    )
    feed = random_feed(graph, batch=2)
    feed["mask"][0] = False

    result, log = rewrite_and_compare(graph, feed)

    assert log.get("drop NaN guards") == count
    assert ("IsNaN" in ops(result)) == (count is None)


def test_packed_projections_are_unpacked_and_need_no_copy():
    graph = onnx_graph(
        """g (float[batch,5,8] x) => (float y) {
            a = MatMul(x, w) c = Add(a, b) s = Constant<value_ints=[-1,5,2,8]>() r = Reshape(c, s)
            t = Transpose<perm=[2,0,1,3]>(r) zero = Constant<value_int=0>() one = Constant<value_int=1>()
            k = Gather<axis=0>(t, zero) v = Gather<axis=0>(t, one) y = Mul(k, v)
        }""",
        weights=weights(w=(8, 16), b=(16,)),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=3), tolerance=1e-5)

    assert sorted(ops(result)) == ["Add", "Add", "MatMul", "MatMul", "Mul"]
    assert log["unpack projections"] == "1"


def test_packed_projections_that_are_read_whole_stay_packed():
    graph = onnx_graph(
        """g (float[batch,5,8] x) => (float y, float z) {
            a = MatMul(x, w) s = Constant<value_ints=[-1,5,2,8]>() r = Reshape(a, s)
            zero = Constant<value_int=0>() k = Gather<axis=2>(r, zero) y = Relu(k) z = Relu(r)
        }""",
        weights=weights(w=(8, 16)),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=3), tolerance=1e-5)

    assert "unpack projections" not in log
    assert ops(result).count("MatMul") == 1


def test_a_projection_between_two_inverse_transposes_needs_none():
    graph = onnx_graph(
        """g (float[batch,5,8] x) => (float y) {
            t = Transpose<perm=[1,0,2]>(x) p = MatMul(t, w) r = Add(p, b)
            q = Transpose<perm=[1,0,2]>(r) y = Relu(q)
        }""",
        weights=weights(w=(8, 6), b=(6,)),
    )

    result, log = rewrite_and_compare(
        graph, random_feed(graph, batch=1), random_feed(graph, batch=3), tolerance=1e-5
    )

    assert ops(result) == ["MatMul", "Add", "Relu"]
    assert log["sink layout"] == "1"


def test_a_projection_stays_behind_a_transpose_that_others_need():
    graph = onnx_graph(
        """g (float[batch,5,8] x) => (float y, float z) {
            t = Transpose<perm=[1,0,2]>(x) p = MatMul(t, w) y = Relu(p) z = Relu(t)
        }""",
        weights=weights(w=(8, 6)),
    )

    result, log = rewrite_and_compare(graph, random_feed(graph, batch=3), tolerance=1e-5)

    assert "sink layout" not in log
    assert ops(result) == ["Transpose", "MatMul", "Relu", "Relu"]
