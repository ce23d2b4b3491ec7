"""What emitters write nodes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Tape:
    """Nodes and constants in the order in which they are written, with names that begin alike."""

    def __init__(self, prefix: str) -> None:
        """Begins an empty tape.

        Args:
            prefix: Begins every name: `"camera/resize"`.
        """
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def op(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Returns the output of a new node of ONNX's own operator `op`."""
        return self.ops(op, inputs, 1, **attributes)[0]

    def ops(self, op: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: Any) -> list[ir.Value]:
        """Returns the outputs of a new node that has several."""
        node = ir.node(op, inputs, attributes, num_outputs=outputs, name=self._name(op))
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}:{number}" if outputs > 1 else node.name
        self.nodes.append(node)
        return list(node.outputs)

    def constant(
        self, data: np.ndarray | np.floating[Any] | float | Sequence[float], dtype: str = "float32"
    ) -> ir.Value:
        """Returns a new initializer; `dtype` counts where `data` is no array."""
        array = data if isinstance(data, np.ndarray) else np.asarray(data, dtype)
        tensor = ir.tensor(array, name=self._name("constant"))
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers.append(value)
        return value

    def integers(self, *numbers: int) -> ir.Value:
        """Returns a new int64 initializer of one axis."""
        return self.constant(np.array(numbers, np.int64))

    def cast(self, value: ir.Value, dtype: str = "float32") -> ir.Value:
        """Returns `value` in another dtype, by its numpy name."""
        return self.op("Cast", [value], to=ir.DataType.from_numpy(np.dtype(dtype)))

    def _name(self, what: str) -> str:
        return f"{self.prefix}/{what.lower()}_{len(self.nodes) + len(self.initializers)}"
