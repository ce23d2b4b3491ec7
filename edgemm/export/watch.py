"""Finds the layer in which torch.export fixes a size. Torch's own message names the size but not the place."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator

from torch import nn
from torch.fx import GraphModule, Node

_LOGGER = "torch.fx.experimental.symbolic_shapes"
_CREATED = re.compile(r"create_symbol (\w+) = -?\d+ for L\['\w+'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
_FIXED = re.compile(r"set_replacement (\w+) = (\d+) ")


class SizeWatch(logging.Handler):
    """Listens to torch's shape log while a model is traced.

    Attributes:
        fixed: (input position, axis) -> size and layer at which torch fixed it, the layer None when unknown.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__(logging.INFO)
        self._names = {id(module): name for name, module in root.named_modules() if name}
        self._sources: dict[str, tuple[int, int]] = {}
        self.fixed: dict[tuple[int, int], tuple[int, str | None]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Reads one record of the log; the Python stack is that of the operation which torch is working on."""
        message = record.getMessage()
        if created := _CREATED.match(message):
            self._sources[created.group(1)] = (int(created.group(2)), int(created.group(3)))
        elif (found := _FIXED.match(message)) and found.group(1) in self._sources:
            key = self._sources[found.group(1)]
            self.fixed.setdefault(key, (int(found.group(2)), self._layer()))

    def reason(self, position: int, axis: int) -> str | None:
        """Returns why a size is fixed, or None when the log has not said."""
        if (position, axis) not in self.fixed:
            return None
        size, layer = self.fixed[position, axis]
        return f"the layer {layer} works for the size {size} only" if layer else f"the model needs the size {size}"

    def _layer(self) -> str | None:
        frame = sys._getframe()
        while frame is not None:
            owner, node = frame.f_locals.get("self"), frame.f_locals.get("n")
            if isinstance(node, Node) and (layer := layer_of_node(node)):
                return layer
            if isinstance(owner, nn.Module) and not isinstance(owner, GraphModule) and id(owner) in self._names:
                return f"{plain_path(self._names[id(owner)])} ({type(owner).__name__})"
            if frame.f_back is None:
                return None
            frame = frame.f_back
        return None


@contextlib.contextmanager
def watch_sizes(root: nn.Module) -> Iterator[SizeWatch]:
    """Gives a SizeWatch that listens inside the block; nothing is printed."""
    logger = logging.getLogger(_LOGGER)
    watch = SizeWatch(root)
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [watch], False
    logger.setLevel(logging.INFO)
    try:
        yield watch
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def plain_path(path: str) -> str:
    """Returns a module path of the user's model, without the wrapper that edgemm traces through."""
    return path.removeprefix("model").lstrip(".") or "forward()"


def layer_of_node(node: Node | None) -> str | None:
    """Returns a traced node's module as `path (Class)`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values()) if node is not None else []
    if not stack:
        return None
    path, kind = stack[-1][0], stack[-1][1]
    name = kind.__name__ if isinstance(kind, type) else str(kind).rsplit(".", 1)[-1]
    return f"{plain_path(path)} ({name})"
