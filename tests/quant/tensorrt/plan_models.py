"""Small fusion models whose plans for TensorRT the tests look at."""

from __future__ import annotations

import onnx_ir as ir
import torch
from builders import random_feed, torch_graph
from torch import nn

from edgemm.graph import ExportedGraph
from edgemm.partition import StageGraph, partition
from edgemm.quant.collect import collect
from edgemm.quant.plan import QuantPlan
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensorrt.apply import apply_tensorrt
from edgemm.quant.tensorrt.placement import tensors_to_watch
from edgemm.rewrite.pipeline import rewrite

Prepared = tuple[ExportedGraph, StageGraph, CalibrationTable]


class Residual(nn.Module):
    """Two 3×3 convolutions with a skip connection."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.b(torch.relu(self.a(x))))


class TwoCameras(nn.Module):
    """Images [B,3,16,16] and [B,3,16,16]: two small CNNs, concatenated by channel, a convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()

        def encoder() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Residual(16))

        self.left, self.right = encoder(), encoder()
        self.mix = nn.Conv2d(32, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.tokens = nn.Linear(32, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.mix(torch.cat([self.left(left), self.right(right)], 1)))
        x = self.depthwise(x).flatten(2).transpose(1, 2)
        return self.out(torch.nn.functional.gelu(self.tokens(x)).mean(1))


class Projected(nn.Module):
    """Features [B,8,64] and `lidar2img` [B,4,4]: points times a scaled projection, joined with features."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 64)
        self.out = nn.Linear(68, 16)

    def forward(self, features: torch.Tensor, lidar2img: torch.Tensor) -> torch.Tensor:
        scaled = lidar2img * 1000.0 + 1.0
        points = torch.relu(self.encode(features))
        return self.out(torch.cat([points, (points[..., :4] @ scaled) / 1e5], -1))


class Wide(nn.Module):
    """Vectors a [B,4,`depth`] and b [B,4,`depth`]: a product each, joined, and two more; one is transposed."""

    def __init__(self, depth: int = 128) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(depth, 256), nn.Linear(depth, 192)
        self.c, self.out = nn.Linear(448, 64), nn.Linear(64, 8)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.out(self.c(torch.relu(torch.cat([self.a(a), self.b(b)], -1))).mean(1))


def prepared(model: nn.Module, example: tuple[torch.Tensor, ...], *names: str, scale: float = 1.0) -> Prepared:
    """Exports, partitions and calibrates a model on a few random samples."""
    torch.manual_seed(0)
    named = dict(zip(names, example, strict=True))
    graph, _ = rewrite(torch_graph(model.eval(), named, outputs=("y",)))
    stages = partition(graph)
    feeds = [random_feed(graph, 1, seed) for seed in range(16)]
    samples = [{n: scale * v[0] for n, v in feed.items()} for feed in feeds]
    return graph, stages, collect(stages, graph.io, samples, "minmax", tensors=tensors_to_watch)


def applied(stages: StageGraph, plan: QuantPlan, table: CalibrationTable) -> dict[str, ir.Model]:
    return {s.name: apply_tensorrt(s, plan, table) for s in stages.stages}
