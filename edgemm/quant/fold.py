"""Factors moved through a float graph by changing weights only: what every scale migration rests on.

For a tensor T and a positive factor f per channel,

    producer → T → consumers   =   (f · producer) → f · T → (consumers / f)

where the producer's weights take f and the consumers' weights its inverse. Relu, pooling and whatever else keeps
positive factors (f · op(x) = op(f · x)) may lie in between, and so may the border of a stage. No node is added,
removed or renamed, so the same new weights serve the model in one piece (`with_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgemm.partition import StageGraph
from edgemm.quant.kernels import is_plain_product
from edgemm.quant.tensors import constant_array, int_attribute
from edgemm.tensors import IOSpec

PASSES = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity")
"""Operators with op(f · x) = f · op(x) for f > 0 that keep the channels where they are."""

MIXES = (
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "ReduceMean",
    "ReduceMax",
    "ReduceSum",
)
"""Those that keep a factor only if it is the same for all channels."""

Tensor = tuple[str, str]
"""Stage name, tensor name."""


def with_weights(model: ir.Model, weights: Mapping[str, np.ndarray]) -> ir.Model:
    """Returns `model` with new arrays for the initializers that it has of `weights`; `model` is not changed."""
    present = [name for name in weights if name in model.graph.initializers]
    if not present:
        return model
    model = model.clone()
    for name in present:
        model.graph.initializers[name].const_value = ir.tensor(weights[name], name=name)
    return model


def with_stage_weights(stage_graph: StageGraph, weights: Mapping[str, np.ndarray]) -> StageGraph:
    """Returns the stages with new arrays for those initializers; stages without them are shared."""
    stages = tuple(replace(s, model=with_weights(s.model, weights)) for s in stage_graph.stages)
    return replace(stage_graph, stages=stages)


@dataclass(slots=True)
class Folder:
    """Moves factors through the stages of one model and keeps the changed weights.

    Attributes:
        stage_graph: The float stages; never changed.
        io: The model's signature: its outputs must keep their values.
        weights: Initializer name -> new array, for every move so far.
        moved: Tensors whose values changed.
    """

    stage_graph: StageGraph
    io: IOSpec
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    moved: dict[Tensor, None] = field(default_factory=dict)
    _uses: dict[str, int] = field(default_factory=dict)
    _values: dict[Tensor, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage in self.stage_graph.stages:
            for value in stage.model.graph.initializers.values():
                self._uses[str(value.name)] = self._uses.get(str(value.name), 0) + len(list(value.uses()))
            for value in stage.model.graph.inputs:
                self._values[stage.name, str(value.name)] = value
            for node in stage.model.graph:
                self._values |= {(stage.name, str(v.name)): v for v in node.outputs}

    def value(self, tensor: Tensor) -> ir.Value:
        """Returns a tensor of a stage."""
        return self._values[tensor]

    def weight(self, value: ir.Value | None) -> np.ndarray | None:
        """Returns the present array of a weight that may change: a float32 initializer with one reader."""
        if value is None or value.name is None or self._uses.get(value.name) != 1:
            return None
        array = self.weights.get(value.name)
        if array is None:
            array = constant_array(value)
        return array if array is not None and array.dtype == np.float32 else None

    def readers(self, tensor: Tensor) -> list[tuple[str, ir.Node, int]] | None:
        """Returns who reads a tensor, in its own and in later stages; None when the model gives it away."""
        stage, name = tensor
        kept = {o.name for o in self.io.outputs} | {s.output for s in self.io.states}
        value = self._values[tensor]
        if name in kept and value.is_graph_output():
            return None
        found = [(stage, node, index) for node, index in value.uses()]
        for edge in self.stage_graph.edges:
            if (edge.producer, edge.tensor) == tensor:
                inner = self.readers((edge.consumer, name))
                if inner is None:
                    return None
                found += inner
        return found

    def move(self, tensor: Tensor, factor: np.ndarray, axis: int) -> bool:
        """Multiplies `tensor` by `factor` in its producers and divides in all of its readers.

        Args:
            tensor: Read by convolutions and products with constant weights only.
            factor: Positive, float `[channels]`.
            axis: Of the channels, counted from the end.

        Returns:
            False, with nothing changed, where a producer or a reader cannot take the factor.
        """
        before, moved = dict(self.weights), dict(self.moved)
        readers = self.readers(tensor)
        divided = readers and all(self._divide(n, i, factor, axis) for _, n, i in readers)
        if divided and self._multiply(tensor, factor, axis):
            return True
        self.weights, self.moved = before, moved
        return False

    def _set(self, value: ir.Value | None, array: np.ndarray) -> bool:
        if value is None or value.name is None or not np.isfinite(array).all():
            return False
        self.weights[value.name] = np.ascontiguousarray(array, dtype=np.float32)
        return True

    def _scale(self, value: ir.Value | None, factor: np.ndarray, axis: int) -> bool:
        array = self.weight(value)
        if array is None or array.shape[axis] != factor.size:
            return False
        shape = [1] * array.ndim
        shape[axis] = -1
        return self._set(value, array * factor.reshape(shape))

    def _divide(self, node: ir.Node, index: int, factor: np.ndarray, axis: int) -> bool:
        """Divides the weight of a reader by the factor of its input channels."""
        if index != 0:
            return False
        weight = self.weight(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None:
            return False
        if node.op_type == "Conv" and axis == 1 - weight.ndim:
            groups = int_attribute(node, "group", 1)
            if groups == 1:
                return self._scale(node.inputs[1], 1 / factor, 1)
            return (
                weight.shape[1] == 1 and groups == weight.shape[0] and self._scale(node.inputs[1], 1 / factor, 0)
            )
        if node.op_type in ("MatMul", "Gemm") and axis == -1 and weight.ndim == 2 and is_plain_product(node):
            return self._scale(node.inputs[1], 1 / factor, int_attribute(node, "transB", 0))
        return False

    def _multiply(self, tensor: Tensor, factor: np.ndarray, axis: int) -> bool:
        """Multiplies what makes a tensor; its readers are the caller's matter."""
        stage, name = tensor
        self.moved[tensor] = None
        for edge in self.stage_graph.edges:
            if (edge.producer, edge.tensor) == tensor:
                self.moved[edge.consumer, name] = None
        value = self._values[tensor]
        node = value.producer()
        if node is None:
            made = next((e.producer for e in self.stage_graph.edges if (e.consumer, e.tensor) == tensor), None)
            return made is not None and self._multiply((made, name), factor, axis)
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return self._into_product(node, factor, axis)
        if node.op_type in ("LayerNormalization", "BatchNormalization", "InstanceNormalization"):
            last = node.op_type == "LayerNormalization"
            if last and (axis != -1 or int_attribute(node, "axis", -1) not in (-1, len(value.shape or [0]) - 1)):
                return False
            if not last and (value.shape is None or axis != 1 - len(value.shape)):
                return False
            has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
            return self._scale(node.inputs[1], factor, 0) and (
                not has_bias or self._scale(node.inputs[2], factor, 0)
            )
        if node.op_type in ("Add", "Mul"):
            return self._into_constant(stage, node, factor, axis)
        if node.op_type == "Concat":
            return self._into_parts(stage, node, factor, axis)
        if node.op_type in PASSES or (node.op_type in MIXES and np.ptp(factor) == 0):
            return self._through(stage, node.inputs[0], factor, axis)
        return False

    def _through(self, stage: str, value: ir.Value | None, factor: np.ndarray, axis: int) -> bool:
        """Goes on in front of a node, if that node is the only reader there."""
        if value is None or constant_array(value) is not None:
            return False
        tensor = stage, str(value.name)
        made = next((e.producer for e in self.stage_graph.edges if (e.consumer, e.tensor) == tensor), None)
        if value.producer() is None and made is None:
            return False
        readers = self.readers((made, tensor[1]) if made is not None and value.producer() is None else tensor)
        return readers is not None and len(readers) == 1 and self._multiply(tensor, factor, axis)

    def _into_product(self, node: ir.Node, factor: np.ndarray, axis: int) -> bool:
        weight = self.weight(node.inputs[1])
        if weight is None:
            return False
        if node.op_type == "Conv":
            if np.ptp(factor) == 0:
                factor, axis = np.full(weight.shape[0], factor[0]), 1 - weight.ndim
            fits, out = axis == 1 - weight.ndim, 0
        else:
            out = 0 if int_attribute(node, "transB", 0) else 1
            if np.ptp(factor) == 0 and weight.ndim == 2:
                factor, axis = np.full(weight.shape[out], factor[0]), -1
            fits = axis == -1 and weight.ndim == 2 and is_plain_product(node)
        if not fits or not self._scale(node.inputs[1], factor, out):
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return bias is None or self._times(bias, factor, -1)

    def _into_constant(self, stage: str, node: ir.Node, factor: np.ndarray, axis: int) -> bool:
        first, second = node.inputs[0], node.inputs[1]
        constant, other = (first, second) if constant_array(first) is not None else (second, first)
        if not self._times(constant, factor, axis):
            return False
        return node.op_type == "Mul" or self._through(stage, other, factor, axis)

    def _times(self, constant: ir.Value | None, factor: np.ndarray, axis: int) -> bool:
        """Multiplies a constant that is broadcast over channels; its shape stays."""
        array = self.weight(constant)
        if array is None:
            return False
        if np.ptp(factor) == 0:
            return self._set(constant, array * factor[0])
        product = array * factor.reshape(-1, *[1] * (-1 - axis))
        return product.shape == array.shape and self._set(constant, product)

    def _into_parts(self, stage: str, node: ir.Node, factor: np.ndarray, axis: int) -> bool:
        start = 0
        for value in node.inputs:
            shape = value.shape if value is not None else None
            if value is None or shape is None or int_attribute(node, "axis", 0) not in (axis, len(shape) + axis):
                return False
            size = shape[axis]
            if not isinstance(size, int):
                return False
            if not self._through(stage, value, factor[start : start + size], axis):
                return False
            start += size
        return start == factor.size
