"""Puts an exported program into evaluation mode: what `model.eval()` would have done before it was saved."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
# Operator -> position of its training flag.
_TRAINING: dict[Any, int] = {
    _aten.batch_norm.default: 5,
    _aten.dropout.default: 2,
    _aten.feature_dropout.default: 2,
    _aten.alpha_dropout.default: 2,
    _aten.lstm.input: 6,
    _aten.gru.input: 6,
}


def set_evaluation_mode(module: GraphModule) -> int:
    """Switches dropout off and batch norm to its running statistics, in place; returns how many layers changed.

    A batch norm without running statistics keeps using the batch's: there is nothing else it could use.
    """
    changed = 0
    for node in list(module.graph.nodes):
        position = _TRAINING.get(node.target)
        if position is not None and len(node.args) > position and node.args[position] is True:
            if node.target is _aten.batch_norm.default and node.args[3] is None:
                continue
            node.args = (*node.args[:position], False, *node.args[position + 1 :])
            changed += 1
        elif _counts_batches(node):
            module.graph.erase_node(node)
    if changed:
        module.recompile()
    return changed


def _counts_batches(node: Node) -> bool:
    """True for the counter that batch norm keeps while it trains."""
    if node.target is not _aten.add_.Tensor or node.users or not isinstance(node.args[0], Node):
        return False
    return str(node.args[0].target).endswith("num_batches_tracked")
