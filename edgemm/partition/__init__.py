"""From one graph to stages: nodes with the same set of modalities are one stage.

`prepare` brings the graph into form, `modalities` propagates which inputs' values reach each node, `dims` lets a
stage read dimensions from its own inputs, `layout` decides what runs where, `cut` builds one graph per stage,
`joins` names how the modalities meet.
"""

from __future__ import annotations

from edgemm.graph import ExportedGraph
from edgemm.partition import prepare
from edgemm.partition.cut import build_stage, connect, name_stages, name_unknown_dims
from edgemm.partition.joins import find_joins
from edgemm.partition.layout import lay_out
from edgemm.partition.stages import Edge, Join, Stage, StageGraph

__all__ = ["Edge", "Join", "Stage", "StageGraph", "partition"]


def partition(graph: ExportedGraph) -> StageGraph:
    """Returns the stages of `graph`; chained, they compute what it computes, bit for bit.

    Every node gets the set of modalities whose values reach it, and nodes with one set are one stage. Constants
    and shape arithmetic belong to no modality and are copied into each stage that uses them. `graph` itself is
    left as it is; the stages share its tensors.

    Bit for bit holds for the nodes as they are written. A runtime that fuses nodes across what is now a cut (an
    Add and the Relu behind it), or keeps float32 between float16 nodes, may round differently, by about the
    precision of the data type.

    Raises:
        ExportError: A tensor that would cross a cut has no type that an array can have.
    """
    model = graph.model.clone()
    prepare.inline_functions(model)
    prepare.drop_weight_inputs(model, graph.io)
    prepare.remove_unused(model)
    prepare.serve_initializer_outputs(model)
    prepare.name_uniquely(model)
    prepare.fill_shapes(model)
    layout = lay_out(model, graph.io)
    name_unknown_dims(layout)
    names = name_stages(layout)
    stages = tuple(build_stage(model, layout, p, n) for p, n in zip(layout.plans, names, strict=True))
    return StageGraph(stages, connect(layout, names), find_joins(layout, names), layout.notes)
