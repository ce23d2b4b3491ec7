"""The tensors inside a graph by the names that they have in float: Q/DQ is looked through."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgemm.partition import StageGraph
from edgemm.quant.chain import Tap

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class InnerTensor:
    """A tensor under its float name: where to read it, and what makes it."""

    tap: Tap
    op: str
    is_float: bool


def inner_tensors(graph: StageGraph) -> dict[str, InnerTensor]:
    """Returns every computed tensor by its float name, in order.

    Where all readers of a tensor see it quantized and dequantized, that is its value: what Q/DQ does to it counts
    as its own error, not as the next layer's.
    """
    found: dict[str, InnerTensor] = {}
    for stage in graph.stages:
        computed = [v for v in stage.model.graph.inputs if not v.is_initializer()]
        ops = {v: "input" for v in computed}
        for node in stage.model.graph:
            if all(v is None or v.const_value is not None or v.is_initializer() for v in node.inputs):
                continue  # made of constants alone: weights that are dequantized
            for value in node.outputs:
                computed.append(value)
                ops[value] = node.op_type
        for value in computed:
            seen = _dequantized(value)
            name = str(value.name)
            if name and name not in found:
                is_float = value.dtype in _FLOATS or seen.dtype in _FLOATS
                found[name] = InnerTensor((stage.name, str(seen.name)), ops[value], is_float)
    return found


def _dequantized(value: ir.Value) -> ir.Value:
    """Returns what stands for `value` behind QuantizeLinear and DequantizeLinear, or `value` itself."""
    quantizers = [u.node for u in value.uses() if u.node.op_type == "QuantizeLinear" and u.idx == 0]
    if len(quantizers) != 1 or len(list(value.uses())) != 1:
        return value
    readers = [u.node for u in quantizers[0].outputs[0].uses()]
    if not readers or any(n.op_type != "DequantizeLinear" for n in readers):
        return value
    return readers[0].outputs[0]
