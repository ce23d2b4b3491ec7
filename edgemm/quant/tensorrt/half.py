"""Nodes that compute in fp16 or bf16: their float32 inputs are cast once, and cast back where float32 is needed.

A strongly typed TensorRT network computes each layer in the type of its inputs, so a cast in the graph is all it
takes. Names and types of the graph's inputs and outputs stay float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from edgemm.quant.edit import Editor, make_node
from edgemm.quant.plan import BF16, HALF
from edgemm.quant.tensors import constant_array

HALF_OPS = frozenset(
    (
        *(
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "Einsum",
            "LSTM",
            "GRU",
            "RNN",
            "Attention",
            "RotaryEmbedding",
        ),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
        *("RMSNormalization", "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"),
        *(
            "Relu",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Selu",
            "Gelu",
            "Erf",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Swish",
        ),
        *("Mish", "Tanh", "Softplus", "Clip", "Exp", "Sqrt", "Reciprocal", "Pow", "Abs", "Neg"),
        *("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Where", "Identity", "Dropout"),
        *(
            "Concat",
            "Split",
            "Slice",
            "Gather",
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Expand",
        ),
        *("Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Resize"),
    )
)
"""Operators that lose little in half precision. Not among them: comparisons and choices of indices, which flip;
sampling at coordinates; sums of squares, which overflow inside."""

FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that stay float32 whatever the node computes in."""

DTYPES = {HALF: ir.DataType.FLOAT16, BF16: ir.DataType.BFLOAT16}


def float_values(model: ir.Model) -> list[ir.Value]:
    """Returns the float32 tensors of the main graph: its inputs, and what nodes compute."""
    graph = model.graph
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    return [v for v in values if v.dtype == ir.DataType.FLOAT and v.name]


def is_float(value: ir.Value) -> bool:
    """Says whether a value is a float32 tensor, as far as the graph tells."""
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    return dtype == ir.DataType.FLOAT


def allowed(node: ir.Node, opset: int, half: str) -> bool:
    """Says whether ONNX has `node`'s operator for a half precision in this opset."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    name = f"tensor({'float16' if half == HALF else 'bfloat16'})"
    types = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return all(name in types.get(o.type_str, (o.type_str,)) for o in schema.outputs[:1])


def to_half(editor: Editor, chosen: Mapping[ir.Node, ir.DataType], keep_weight: Collection[ir.Node] = ()) -> None:
    """Makes nodes of the main graph compute in half precision, in place.

    Args:
        editor: Of the graph.
        chosen: Node -> FLOAT16 or BFLOAT16; all others compute as they did.
        keep_weight: Nodes whose input 1 stays as it is: they will be int8.
    """
    caster = _Caster(editor)
    graph = editor.model.graph
    for node in list(graph):
        dtype = chosen.get(node)
        for index, value in enumerate(node.inputs):
            if value is None or not caster.is_float(value) or (index == 1 and node in keep_weight):
                continue
            fixed = index in FLOAT_INPUTS.get(node.op_type, ())
            node.replace_input_with(
                index, caster.typed(value, ir.DataType.FLOAT if fixed or dtype is None else dtype)
            )
        if dtype is not None:
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    value.type, caster.native[value] = ir.TensorType(dtype), dtype
    for value in list(caster.native):
        for user, index in list(value.uses()):
            if user.graph is not graph:  # inside an If or a Loop
                user.replace_input_with(index, caster.typed(value, ir.DataType.FLOAT))
    for index, value in enumerate(graph.outputs):
        if value in caster.native:
            name, back = value.name, caster.typed(value, ir.DataType.FLOAT)
            value.name, back.name = f"{name}/half", name
            graph.outputs[index] = back


@dataclass(slots=True)
class _Caster:
    """Every tensor in the types that somebody reads it in, each made once.

    Attributes:
        editor: Of the graph.
        native: Tensors that are half precision by themselves.
    """

    editor: Editor
    native: dict[ir.Value, ir.DataType] = field(default_factory=dict)
    _made: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def is_float(self, value: ir.Value) -> bool:
        """Says whether a value was float32 before anything changed."""
        return value in self.native or is_float(value)

    def typed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Returns `value` as `dtype`."""
        if self.native.get(value, ir.DataType.FLOAT) == dtype:
            return value
        key = value, dtype
        if key not in self._made:
            self._made[key] = self._make(value, dtype)
        return self._made[key]

    def _make(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}/{dtype.name.lower()}"
        array = constant_array(value)
        if array is not None:
            return self.editor.constant(name, array.astype(dtype.numpy()))
        cast = make_node("Cast", [value], name, {"to": int(dtype)})
        made = cast.outputs[0]
        made.type, made.shape = ir.TensorType(dtype), value.shape
        self.editor.after_producer(value, [cast])
        return made
