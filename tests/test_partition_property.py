"""Random multimodal graphs: whatever is drawn, the stages obey the invariants and compute the same bits."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx_ir as ir
from builders import DISABLED, exported, partition_and_compare, random_feed, run_whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgemm.rewrite import rewrite

MODALITIES = ("image", "audio", "text")
UNARY = ("Relu", "Tanh", "Sigmoid", "Abs", "Identity")
BINARY = ("Add", "Mul", "Sub", "Max", "Where", "Concat", "ReshapeLike", "FillLike", "If", "Count")
NULLARY = ("Weight", "ExpWeight")


class Drawing:
    """A graph under construction; every value is float32 of shape [batch, 4]."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.weights: dict[str, np.ndarray] = {
            "w": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4),
            "v": np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4),
            "row": np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 4),
            "zero": np.zeros(1, np.int64),
            "four": np.full(1, 4, np.int64),
            "nought": np.zeros((), np.float32),
        }
        self._number = itertools.count()

    def node(self, op: str, *inputs: str, **attributes) -> str:
        name = f"n{next(self._number)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def draw(self, op: str, a: str, b: str) -> str:
        if op == "Where":
            return self.node("Where", self.node("Greater", a, b), a, b)
        if op == "Concat":
            return self.node("MatMul", self.node("Concat", a, b, axis=1), "v")
        if op == "ReshapeLike":
            return self.node("Reshape", a, self.node("Shape", b))
        if op == "FillLike":  # a constant, expanded to the batch of b
            batch = self.node("Gather", self.node("Shape", b), "zero")
            ones = self.node("Expand", "row", self.node("Concat", batch, "four", axis=0))
            return self.node("Add", a, ones)
        if op == "Count":
            return self.node("Div", a, self.node("Cast", self.node("Size", b), to=TensorProto.FLOAT))
        if op == "If":
            return self._branch(a, b)
        if op == "Weight":
            return self.node("MatMul", a, "w")
        if op == "ExpWeight":
            return self.node("MatMul", a, self.node("Exp", "w"))
        return self.node(op, a) if op in UNARY else self.node(op, a, b)

    def _branch(self, a: str, b: str) -> str:
        test = self.node("Greater", self.node("ReduceSum", a, keepdims=0), "nought")
        number = next(self._number)
        branches = {}
        for name, op in (("then_branch", "Add"), ("else_branch", "Sub")):
            out = f"{name}{number}"
            info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
            branches[name] = helper.make_graph([helper.make_node(op, [a, b], [out])], name, [], [info])
        return self.node("If", test, **branches)


@st.composite
def graphs(draw):
    drawing = Drawing()
    count = draw(st.integers(1, 3))
    states = draw(st.integers(0, 2))
    inputs = [*MODALITIES[:count], *(f"h{i}" for i in range(states))]
    values = list(inputs)
    for _ in range(draw(st.integers(1, 14))):
        op = draw(st.sampled_from(UNARY + BINARY + NULLARY))
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        values.append(drawing.draw(op, a, b))
    made = values[len(inputs) :]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=min(3, len(made)), unique=True))
    pairs = []
    for i in range(states):
        pairs.append((f"h{i}", drawing.node("Tanh", draw(st.sampled_from(values)))))
    specs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in inputs]
    results = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in outputs + [o for _, o in pairs]
    ]
    weights = [numpy_helper.from_array(v, n) for n, v in drawing.weights.items()]
    model = helper.make_model(
        helper.make_graph(drawing.nodes, "random", specs, results, weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return exported(ir.from_proto(model), states=pairs)


def live_nodes(graph) -> tuple[set[str], set[str]]:
    """Returns the nodes that no stage may share, and those of them that outputs need for more than a shape."""
    reads: dict[ir.Node, bool] = {}

    def sources(node):
        bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        return [*node.inputs, *(v for b in bodies for n in b for v in n.inputs)]

    def is_shape(node):
        return node.op_type in ("Shape", "Size")

    for node in graph.model.graph:
        reads[node] = not is_shape(node) and any(
            v.is_graph_input() or reads.get(v.producer(), False) for v in sources(node)
        )
    live, stack = set(), [v.producer() for v in graph.model.graph.outputs]
    while stack:
        node = stack.pop()
        if node is not None and node not in live:
            live.add(node)
            stack.extend(v.producer() for v in sources(node) if not is_shape(node))
    single = {n for n, by_value in reads.items() if by_value}
    return {n.name for n in single}, {n.name for n in single & live}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graph=graphs())
def test_stages_of_a_random_graph(graph):
    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=3, seed=1))

    by_name = {s.name: s for s in stages.stages}
    order = list(by_name)
    assert len(by_name) == len(stages.stages)
    for edge in stages.edges:
        producer, consumer = by_name[edge.producer], by_name[edge.consumer]
        assert set(producer.modalities) < set(consumer.modalities)
        assert order.index(edge.producer) < order.index(edge.consumer)
        assert edge.tensor in {o.name for o in producer.outputs}
        assert edge.tensor in {i.name for i in consumer.inputs}

    cut = {e.tensor for e in stages.edges}
    inputs = {i.name for i in graph.io.inputs}
    for stage in stages.stages:
        assert {i.name for i in stage.inputs} <= cut | inputs
        fed = [i.name for i in stage.inputs if i.name in graph.io.modalities]
        assert {graph.io.modalities[n] for n in fed} <= set(stage.modalities)
        assert stage.nodes == len(stage.model.graph)

    homes = Counter(n.name for s in stages.stages for n in s.model.graph)
    single, needed = live_nodes(graph)
    assert all(homes[n] <= 1 for n in single)
    assert all(homes[n] == 1 for n in needed)
    assert len({s.modalities for s in stages.stages}) == len(stages.stages)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs())
def test_a_random_graph_is_rewritten_and_then_cut(graph):
    rewritten, _ = rewrite(graph)

    for feed in (random_feed(graph, batch=1), random_feed(graph, batch=3, seed=1)):
        expected, got = run_whole(graph, feed, DISABLED), run_whole(rewritten, feed, DISABLED)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    partition_and_compare(rewritten, random_feed(graph, batch=2))
