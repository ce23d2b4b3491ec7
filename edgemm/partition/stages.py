"""The stage graph as a value: stages, the tensors between them, and the nodes that join them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from edgemm.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Join:
    """A node whose inputs come from different stages.

    Attributes:
        node: Node name in the stage's graph.
        op: ONNX operator type.
        kind: `"concat"`, `"add"`, `"weighted sum"`, `"gate"`, `"product"`, `"bilinear"`, `"attention"`,
            `"select"`, or the operator in lower case.
        stage: Name of the stage that the node is in.
        sources: Where its inputs come from, in the order of the inputs: names of stages, and names of
            modalities for model inputs that reach the node without an encoder.
    """

    node: str
    op: str
    kind: str
    stage: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """The nodes that the same set of modalities reaches, as a graph of its own.

    Attributes:
        name: Unique, usable as a file name: `"image"` for an encoder, `"fusion"` (or `"audio+image"` when there
            are several fusion stages) for a head.
        modalities: In the order of the model's inputs.
        role: `"encoder"` (one modality) or `"fusion head"` (several).
        inputs: Graph inputs and cut tensors it reads, with symbolic shapes.
        outputs: Graph outputs and cut tensors it gives.
        model: Its graph; input and output names equal those above.
        nodes: Number of nodes.
        parameters: Number of weight elements (initializers of float or integer weights); constants of baked
            preprocessing are none.
    """

    name: str
    modalities: tuple[str, ...]
    role: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ir.Model
    nodes: int
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the graph as a plain dict."""
        return {
            "name": self.name,
            "modalities": list(self.modalities),
            "role": self.role,
            "inputs": [_spec_json(i) for i in self.inputs],
            "outputs": [_spec_json(o) for o in self.outputs],
            "nodes": self.nodes,
            "parameters": self.parameters,
        }


@dataclass(frozen=True, slots=True)
class Edge:
    """`producer` gives `tensor` to `consumer`."""

    producer: str
    consumer: str
    tensor: str


@dataclass(frozen=True, slots=True)
class StageGraph:
    """Stages in topological order, the tensors between them, and the joins.

    Attributes:
        stages: Every stage after the stages that it reads from.
        edges: One per cut tensor and consumer.
        joins: In graph order.
        notes: What a person should know about the cut, for example a shape that had to be read as a value.
    """

    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    joins: tuple[Join, ...]
    notes: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        """Returns the stage called `name`.

        Raises:
            KeyError: There is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Returns stages, edges, joins and notes as plain dicts and lists."""
        return {
            "stages": [s.to_json() for s in self.stages],
            "edges": [asdict(e) for e in self.edges],
            "joins": [asdict(j) | {"sources": list(j.sources)} for j in self.joins],
            "notes": list(self.notes),
        }


def _spec_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
