"""From one graph to stages: nodes with the same set of modalities are one stage."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgemm.graph import ExportedGraph
from edgemm.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Join:
    """A node whose inputs come from different stages."""

    node: str
    op: str
    kind: str  # "concat" | "add" | "gate" | "matmul" | "attention" | ...
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
        parameters: Number of weight elements (initializers of float or integer weights).
    """

    name: str
    modalities: tuple[str, ...]
    role: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ir.Model
    nodes: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Edge:
    """`producer` gives `tensor` to `consumer`."""

    producer: str
    consumer: str
    tensor: str


@dataclass(frozen=True, slots=True)
class StageGraph:
    """Stages in topological order, the tensors between them, and the joins."""

    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    joins: tuple[Join, ...]


def partition(graph: ExportedGraph) -> StageGraph:
    """Returns the stages of `graph`; chained, they compute what it computes."""
    raise NotImplementedError
