"""A recurrent layer that starts from zeros starts from nothing: GRU(x, w, r, b, l, zeros) -> GRU(x, w, r, b, l).

ONNX defines an absent initial state as zeros, and runtimes fill it in without the Shape, Expand and Slice that an
exporter writes for it. Declined for a state that is an input, or not provably zero.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.rewrite import build
from edgemm.tensors import IOSpec

_CARRIES = frozenset(
    {"Expand", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Gather", "Identity", "Tile"}
)
_STATES = {"GRU": (5,), "RNN": (5,), "LSTM": (5, 6)}


def apply(model: ir.Model, io: IOSpec) -> int:
    """Drops initial states of zeros in the main graph; returns how many."""
    count = 0
    for node in list(model.graph):
        for index in _STATES.get(node.op_type, ()) if node.domain == "" else ():
            state = node.inputs[index] if index < len(node.inputs) else None
            if state is not None and is_zero(state):
                node.replace_input_with(index, None)
                build.remove_dead(model.graph, state.producer())
                count += 1
    return count


def is_zero(value: ir.Value) -> bool:
    """Whether every element of `value` is zero, whatever the inputs are."""
    found = build.array(value)
    if found is not None:
        return not found.any()
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not fill.as_tensor().numpy().any()
    source = node.inputs[0] if node.op_type in _CARRIES else None
    return source is not None and is_zero(source)
