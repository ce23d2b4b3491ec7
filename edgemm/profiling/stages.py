"""Which stage a node belongs to when one engine holds several: the modalities whose values reach it tell.

The same rule by which a conversion cuts a model (`edgemm.partition`), on the graph that the bundle holds.
"""

from __future__ import annotations

from collections.abc import Callable

from edgemm.bundle import EngineEntry, Manifest
from edgemm.profiling.onnx_nodes import Graph, Node

_SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Operators that see no value of their input."""


def stage_of(graph: Graph, entry: EngineEntry, manifest: Manifest) -> Callable[[Node | None], str]:
    """Returns what tells the stage of a node; of None, and where nothing tells, it is the engine's name.

    Args:
        graph: Of the engine.
        entry: The engine.
        manifest: Of the bundle.
    """
    if len(entry.stages) == 1:
        return lambda node: entry.stages[0]
    reached = _reached(graph, manifest)
    stages = sorted((s for s in manifest.stages if s.name in entry.stages), key=lambda s: len(s.modalities))

    def stage(node: Node | None) -> str:
        modalities = (
            frozenset().union(*(reached.get(o, frozenset()) for o in node.outputs)) if node else frozenset()
        )
        return next((s.name for s in stages if modalities and modalities <= set(s.modalities)), entry.name)

    return stage


def _reached(graph: Graph, manifest: Manifest) -> dict[str, frozenset[str]]:
    """Returns tensor -> modalities whose values reach it; states carry theirs over to the next call."""
    io = manifest.io
    states = dict.fromkeys(io.state_inputs, frozenset[str]())
    while True:
        reached = {name: frozenset({modality}) for name, modality in io.modalities.items()} | states
        for node in graph.nodes:
            if node.op not in _SHAPE_ONLY:
                found = frozenset[str]().union(*(reached.get(name, frozenset()) for name in node.inputs))
                reached |= dict.fromkeys(node.outputs, found)
        carried = {s.input: states[s.input] | reached.get(s.output, frozenset()) for s in io.states}
        if carried == states:
            return reached
        states = carried
