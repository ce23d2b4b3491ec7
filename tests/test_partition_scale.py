"""A graph of 5,000 nodes and 100 MB of weights: cut in seconds, and without a second copy of the weights."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from builders import exported

from edgemm.graph import ExportedGraph
from edgemm.partition import partition
from edgemm.rewrite import rewrite

NODES = 5_000
WEIGHT = 512


def deep_model(nodes: int) -> ExportedGraph:
    """Returns two towers of Add nodes over dynamic shapes, with 100 MB of weights in a MatMul here and there."""

    def tensor(name):
        return ir.Value(name=name, shape=ir.Shape(["batch", WEIGHT]), type=ir.TensorType(ir.DataType.FLOAT))

    rng = np.random.default_rng(0)
    inputs = [tensor("image"), tensor("audio")]
    made: list[ir.Node] = []
    weights: list[ir.Value] = []
    towers = list(inputs)
    every = nodes // 100
    for i in range(nodes // 2 - 1):
        for side in range(2):
            if i % every == 0:
                array = rng.standard_normal((WEIGHT, WEIGHT), dtype=np.float32)
                name = f"w{i}_{side}"
                weight = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                weights.append(weight)
                node = ir.Node("", "MatMul", [towers[side], weight], name=f"m{i}_{side}")
            else:
                node = ir.Node("", "Add", [towers[side], towers[side]], name=f"a{i}_{side}")
            node.outputs[0].name = f"v{i}_{side}"
            towers[side] = node.outputs[0]
            made.append(node)
    last = ir.Node("", "Add", towers, name="join", outputs=[tensor("y")])
    graph = ir.Graph(
        inputs, last.outputs, nodes=[*made, last], initializers=weights, opset_imports={"": 20}, name="deep"
    )
    return exported(ir.Model(graph, ir_version=10))


@pytest.mark.slow
def test_a_large_graph_shares_its_weights():
    graph = deep_model(NODES)

    rewritten, _ = rewrite(graph)
    stages = partition(rewritten)

    assert [s.name for s in stages.stages] == ["image", "audio", "fusion"]
    assert sum(s.nodes for s in stages.stages) == len(rewritten.model.graph)
    tensors = {id(v.const_value) for v in graph.model.graph.initializers.values()}
    used = [v.const_value for s in stages.stages for v in s.model.graph.initializers.values()]
    assert {id(t) for t in used} == tensors


def test_weights_are_not_copied_on_the_way():
    graph = deep_model(400)
    assert sum(v.const_value.nbytes for v in graph.model.graph.initializers.values()) > 99e6

    tracemalloc.start()
    partition(rewrite(graph)[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20e6


@pytest.mark.slow
def test_time_grows_like_the_graph():
    def seconds(nodes):
        graph = deep_model(nodes)
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            partition(graph)
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(1600) < 12 * seconds(400)  # 4 for a linear algorithm, 16 for a quadratic one
