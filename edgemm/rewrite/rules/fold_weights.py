"""Weights that are only cut or rearranged are stored that way: Transpose(Split(w)[0]) -> w'.

`fold_constants` leaves nodes with several outputs and large results; here the results together are no larger than
the weight. A weight that something else reads stays as well, so a weight over `SIZE_LIMIT` must be free to go.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from edgemm.rewrite import build
from edgemm.tensors import IOSpec

OPS = frozenset({"Split", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})

SIZE_LIMIT = 65_536
"""Elements of the largest weight that may be stored twice."""


def apply(model: ir.Model, io: IOSpec) -> int:
    """Folds rearranged weights; returns how many nodes went."""
    opset = model.graph.opset_imports.get("", 1)
    return sum(_fold(n, opset) for n in list(model.graph) if n.domain == "" and n.op_type in OPS)


def _fold(node: ir.Node, opset: int) -> bool:
    inputs = [build.array(v) for v in node.inputs if v is not None]
    arrays = [a for a in inputs if a is not None]
    weight = node.inputs[0]
    if weight is None or len(arrays) < len(inputs) or any(o.is_graph_output() for o in node.outputs):
        return False
    if arrays[0].size > SIZE_LIMIT and not build.only_use(weight):
        return False
    if arrays[0].dtype.type.__module__ != "numpy":  # float8 and the like, which the evaluator does not have
        return False
    results = _run(node, opset, arrays)
    builder = build.Builder(node)
    for output, result in zip(node.outputs, results, strict=True):
        ir.convenience.replace_all_uses_with(output, builder.constant(np.ascontiguousarray(result)))
    build.remove_dead(builder.graph, node)
    if not weight.uses() and not weight.is_graph_output() and (weight.name or "") in builder.graph.initializers:
        del builder.graph.initializers[weight.name or ""]
    return True


def _run(node: ir.Node, opset: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
    names = [f"i{i}" for i in range(len(arrays))]
    outputs = [f"o{i}" for i in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names, outputs)
    proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
    infos = [onnx.helper.make_empty_tensor_value_info(n) for n in (*names, *outputs)]
    graph = onnx.helper.make_graph([proto], "fold", infos[: len(names)], infos[len(names) :])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    evaluator = onnx.reference.ReferenceEvaluator(model)
    return list(evaluator.run(None, dict(zip(names, arrays, strict=True))))
