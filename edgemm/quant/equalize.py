"""Equal ranges for the channels of convolution chains, and for the branches of a join.

Cross-layer equalisation (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
2019) moves a factor per channel from one layer's weights into the next one's, through Relu and pooling. The paper
balances the weights of both layers. Weights have a scale per output channel here, so the first layer's need no
help; what a channel lacks is its share of the one scale of the activation in between. So that range takes the
place of the first layer's weights, as in `smooth`, whose choice of the strength is used.

Branches of a join get one factor each, which also passes what mixes channels: the small branch grows, its rows of
the reader's weight shrink, and the shared scale costs no more than separate ones would, with nothing to compute.
"""

from __future__ import annotations

import numpy as np

from edgemm.data import Samples
from edgemm.quant.fold import Folder, Tensor
from edgemm.quant.joins import MIN_BITS, JoinScales
from edgemm.quant.plan import QuantPlan
from edgemm.quant.smooth import factors, input_weights, int8_inputs, migrate
from edgemm.quant.tensors import int_attribute, named_nodes


def equalize(folder: Folder, plan: QuantPlan, samples: Samples) -> dict[Tensor, tuple[float, float]]:
    """Equalises the channels between convolutions; returns as `smooth.smooth`."""
    return migrate(folder, samples, int8_inputs(folder.stage_graph, plan, ("Conv",)))


def equalize_branches(folder: Folder, joins: tuple[JoinScales, ...]) -> dict[Tensor, tuple[float, ...]]:
    """Gives the branches of every Concat with too few effective bits a factor each, where weights can take it.

    Returns:
        Join output -> factor per branch, for those that moved.
    """
    result = {}
    for join in joins:
        if join.bits >= MIN_BITS or join.op != "Concat":
            continue
        stage = folder.stage_graph.stage(join.stage)
        node = named_nodes(stage.model.graph)[join.node]
        tensor = join.stage, str(node.outputs[0].name)
        shape = node.outputs[0].shape
        weights = input_weights(folder, tensor)
        sizes = [
            v.shape[int_attribute(node, "axis", 0)] if v is not None and v.shape else None for v in node.inputs
        ]
        if shape is None or weights is None or not all(isinstance(s, int) for s in sizes):
            continue
        axis = int_attribute(node, "axis", 0)
        axis = axis if axis < 0 else axis - len(shape)
        numbers = [int(s) for s in sizes if isinstance(s, int)]
        if sum(numbers) != len(weights):
            continue
        parts = np.split(np.abs(weights).max(axis=(1, 2)), np.cumsum(numbers)[:-1])
        gains = factors(np.array([b.width for b in join.branches]), np.array([p.max() for p in parts]), 0.5)
        if folder.move(tensor, np.repeat(gains, numbers), axis):
            result[tensor] = tuple(float(g) for g in gains)
    return result
