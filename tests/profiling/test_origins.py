"""From what a runtime runs back to the nodes of the bundle's graph."""

from __future__ import annotations

from edgemm.bundle import EngineEntry, Manifest, StageEntry
from edgemm.profiling.onnx_nodes import Graph, Node
from edgemm.profiling.origins import Origins
from edgemm.profiling.stages import stage_of
from edgemm.tensors import IOSpec, StateSpec, TensorSpec


def node(name: str, op: str, inputs: str, outputs: str, domain: str = "") -> Node:
    return Node(name, op, domain, tuple(inputs.split()), tuple(outputs.split()))


def graph(*nodes: Node) -> Graph:
    return Graph(nodes, {}, {})


FLOAT = graph(
    node("conv1", "Conv", "x w1", "c1"),
    node("relu1", "Relu", "c1", "r1"),
    node("conv2", "Conv", "r1 w2", "c2"),
    node("add", "Add", "c2 r1", "s"),
    node("relu2", "Relu", "s", "y"),
)


def names(found: tuple[Node, ...]) -> list[str]:
    return [n.name for n in found]


def test_a_fusion_ends_where_both_graphs_have_a_tensor() -> None:
    fused = graph(
        node("fused conv1", "FusedConv", "x w1", "r1"),
        node("whatever", "FusedConv", "r1 w2 r1", "y", "com.microsoft"),
    )
    made = Origins(FLOAT).of_optimized(fused)
    assert names(made["fused conv1"]) == ["relu1", "conv1"]
    assert names(made["whatever"]) == ["relu2", "add", "conv2"]


def test_blocked_layout_names_the_tensor() -> None:
    """The tensors between convolutions in blocks are new ones; the first conv still ends at its Relu."""
    blocked = graph(
        node("ReorderInput", "ReorderInput", "x", "reorder"),
        node("r1_nchwc", "Conv", "reorder w1_", "reorder_token_1", "com.microsoft.nchwc"),
        node("y_nchwc", "Conv", "reorder_token_1 w2_ reorder_token_1", "reorder_token_2", "com.microsoft.nchwc"),
        node("ReorderOutput", "ReorderOutput", "reorder_token_2", "y", "com.microsoft.nchwc"),
    )
    made = Origins(FLOAT).of_optimized(blocked)
    assert names(made["r1_nchwc"]) == ["relu1", "conv1"]
    assert "ReorderInput" not in made


def test_quantized_operators() -> None:
    qdq = graph(
        node("dx", "DequantizeLinear", "xq s z", "xd"),
        node("dw", "DequantizeLinear", "wq s z", "wd"),
        node("conv", "Conv", "xd wd", "c"),
        node("q", "QuantizeLinear", "c s z", "cq"),
    )
    made = Origins(qdq).of_optimized(graph(node("conv", "QLinearConv", "xq s z wq s z s z", "cq")))
    assert names(made["conv"]) == ["q", "conv", "dx", "dw"]


def test_names_with_endings() -> None:
    origins = Origins(FLOAT)
    for name in ("conv1", "conv1/WithoutBiases", "conv1_token_3", "fused conv1", "c1", "conv1_nchwc"):
        found = origins.named(name)
        assert found is not None, name
        assert found.name == "conv1"
    assert origins.named("nothing") is None


def test_names_of_tensorrt_layers() -> None:
    origins = Origins(FLOAT)
    network = {"conv1": "conv1", "relu1": "relu1", "conv2": "conv2", "add": "add", "relu2 [layer]": "relu2"}

    def found(name: str) -> list[str]:
        return names(origins.in_fused_name(name, network))

    assert found("conv1 + relu1") == ["conv1", "relu1"]
    assert found("conv1 || conv2") == ["conv1", "conv2"]
    assert found("PWN(add, relu2 [layer])") == ["add", "relu2"]
    assert found("PWN(PWN(add), relu1)") == ["add", "relu1"]
    assert found("{ForeignNode[relu1...add]}") == ["relu1", "conv2", "add"]
    assert found("Reformatting CopyNode for Input Tensor 0 to conv1 + relu1") == []
    assert found("__myl_AddRelu_myl0_1") == []
    assert found("something") == []


def spec(name: str) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", 2))


def test_stages_inside_of_one_engine() -> None:
    """The state carries image over to what reads it; a shape alone carries nothing."""
    whole = graph(
        node("encode", "Relu", "image", "f"),
        node("keep", "Add", "f h", "h_out"),
        node("size", "Shape", "image", "shape"),
        node("audio", "Reshape", "audio shape", "a"),
        node("join", "Concat", "f a", "y"),
        node("later", "Relu", "h", "z"),
        node("constant", "Relu", "k", "kk"),
    )
    io = IOSpec(
        (spec("image"), spec("audio"), spec("h")),
        (spec("y"), spec("h_out")),
        {"image": "image", "audio": "audio"},
        (StateSpec("h", "h_out"),),
    )
    stages = tuple(
        StageEntry(n, m, "encoder", (), (), 1, 0)
        for n, m in (("both", ("image", "audio")), ("see", ("image",)), ("hear", ("audio",)))
    )
    entry = EngineEntry("whole", ("see", "hear", "both"), "whole.onnx", (), (), {})
    tell = stage_of(whole, entry, Manifest("m", io, stages, (), ()))
    assert {n.name: tell(n) for n in whole.nodes} == {
        "encode": "see",
        "keep": "see",
        "size": "whole",
        "audio": "hear",
        "join": "both",
        "later": "see",
        "constant": "whole",
    }
    assert tell(None) == "whole"
    lone = EngineEntry("one", ("see",), "see.onnx", (), (), {})
    assert stage_of(whole, lone, Manifest("m", io, stages, (), ()))(whole.nodes[-1]) == "see"
