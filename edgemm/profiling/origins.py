"""Which nodes of the graph in the bundle a layer of an engine was made of.

Runtimes fuse, rename and insert. What stays is the name of a tensor that leaves a fusion, or the name of a node in
the name that the runtime made up; from there on the graph itself tells what else is inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from edgemm.profiling.onnx_nodes import Graph, Node

_UNIQUE = re.compile(r"_token_\d+$")
"""What ONNX Runtime adds to a name that is taken."""

_MADE_UP = re.compile(
    r"^(?:fused )*(.*?)(?:_nchwc|_nhwc|/MatMulAddFusion.*|/LayerNormFusion.*|_quant|_DequantizeLinear)?$"
)
"""The names that ONNX Runtime gives what it makes of a node or of a tensor (its core/optimizer)."""


class Origins:
    """The graph in the bundle, by names of nodes and of tensors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._nodes = {node.name: node for node in graph.nodes if node.name}
        self._producers = graph.producers()

    def named(self, name: str) -> Node | None:
        """Returns the node of this name, or the one that gives the tensor of this name.

        What a runtime has put behind a slash or a made-up ending is taken off.
        """
        candidates = [name, _UNIQUE.sub("", name)]
        match = _MADE_UP.match(candidates[-1])
        candidates.append(match[1] if match else name)
        while "/" in candidates[-1].strip("/"):
            candidates.append(candidates[-1].rpartition("/")[0])
        for candidate in candidates:
            found = self._nodes.get(candidate) or self._producers.get(candidate)
            if found is not None:
                return found
        return None

    def all_named(self, names: Iterable[str]) -> tuple[Node, ...]:
        """Returns the nodes of these names, each once, those that are not known left out."""
        found = (self.named(name) for name in names)
        return tuple({id(node): node for node in found if node is not None}.values())

    def of_optimized(self, optimized: Graph) -> dict[str, tuple[Node, ...]]:
        """Returns node of the optimized graph -> the nodes that it was made of, the one that ends it first.

        A tensor that both graphs have is where a fusion ends; what leads up to it from tensors that the optimized
        graph has as well is inside of it. Nodes that were inserted (a change of layout) are not listed.
        """
        ends: dict[str, tuple[Node, ...]] = {}
        for node in optimized.nodes:
            known = [self._producers[name] for name in node.outputs if name in self._producers]
            by_name = None if known or _inserted(node) else self.named(node.name)
            ends[node.name] = tuple({id(n): n for n in (known or ([by_name] if by_name else []))}.values())
        outside = {name for node in optimized.nodes for name in (*node.inputs, *node.outputs)}
        closed = {id(node) for nodes in ends.values() for node in nodes}
        return {name: self._inside(nodes, outside, closed) for name, nodes in ends.items() if nodes}

    def _inside(self, ends: Sequence[Node], outside: set[str], closed: set[int]) -> tuple[Node, ...]:
        inside = {id(node): node for node in ends}
        waiting = list(ends)
        while waiting:
            for name in waiting.pop().inputs:
                node = self._producers.get(name)
                if node is None or name in outside or id(node) in closed or id(node) in inside:
                    continue
                inside[id(node)] = node
                waiting.append(node)
        return tuple(inside.values())

    def in_fused_name(self, name: str, layers: Mapping[str, str]) -> tuple[Node, ...]:
        """Returns the nodes in the name of a TensorRT layer: `a + b`, `a || b`, `PWN(a)`, `{ForeignNode[a...b]}`.

        Args:
            name: Of the layer.
            layers: Layer of the network -> its ONNX node, in the network's order; of a range all between its ends.
        """
        if name.startswith(("Reformatting CopyNode", "__mye", "__myl")):
            return ()
        order = list(layers)
        names: list[str] = []
        for part in re.split(r" \+ | \|\| |, ", name):
            part = re.sub(r"^(?:PWN\(|\{ForeignNode\[)+", "", part.strip())
            while part not in layers and part.endswith((")", "]", "}")):
                part = part[:-1]
            first, dots, end = part.partition("...")
            if dots and first in layers and end in layers:
                names += order[order.index(first) : order.index(end) + 1]
            else:
                names.append(part)
        return self.all_named(layers.get(n) or n for n in names)


def _inserted(node: Node) -> bool:
    return node.op in ("ReorderInput", "ReorderOutput") or (
        node.domain == "com.ms.internal.nhwc" and node.op == "Transpose"
    )
