"""A camera and a lidar, joined from above: the camera's features are put where the lidar says that they are.

    camera [B,3,32,96] ─▶ convolutions ─▶ [24,16,48] ─┐
                                                       lift ─▶ [24,40,40] ─┐
    lidar  depth [B,1,16,48] ─────────────────────────┘                    concat ─▶ convolutions ─▶ logits
           pillars [B,5,40,40] ─▶ convolutions ─▶ [24,40,40] ──────────────┘                         [B,4,40,40]

The lift reads the lidar in the middle of the camera's branch: a cross edge between the encoders. As in Lift,
Splat, Shoot (Philion and Fidler 2020) with measured depth in the place of a predicted one, and BEVFusion's concat
and convolutions from above (Liu et al. 2022). Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/camera_lidar.py:build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, CELLS, AHEAD, COLUMNS = 4, 40, 2.0, 48
INPUTS = ("camera", "pillars", "depth")


def block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class Lift(nn.Module):
    """Puts features of a picture on the ground, by the depth of each."""

    middles: torch.Tensor
    sources: torch.Tensor
    inside: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middles", (AHEAD + 0.5 + torch.arange(CELLS, dtype=torch.float32)).view(1, 1, 1, -1))
        x = AHEAD + 0.5 + torch.arange(CELLS).view(-1, 1)
        y = 0.5 - CELLS / 2 + torch.arange(CELLS).view(1, -1)
        column = torch.floor((1 - y / x) * COLUMNS / 2).long()
        inside = (column >= 0) & (column < COLUMNS)
        sources = column.clamp(0, COLUMNS - 1) * CELLS + torch.arange(CELLS).view(-1, 1)
        self.register_buffer("sources", sources.flatten())
        self.register_buffer("inside", inside.float().view(1, 1, CELLS, CELLS))

    def forward(self, features: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Returns `[B,C,40,40]` from features `[B,C,16,48]` and metres ahead `[B,1,16,48]`.

        Each feature counts in the two cells between which its depth is; what falls into one cell is averaged.
        """
        near = (1 - (depth.squeeze(1).permute(0, 2, 1).unsqueeze(3) - self.middles).abs()).clamp(min=0)
        sums = features.permute(0, 3, 1, 2) @ near  # [B,48,C,16] @ [B,48,16,40], a column of pixels each
        means = sums / near.sum(2, keepdim=True).clamp(min=1)
        fan = means.permute(0, 2, 1, 3).flatten(2)
        return fan[:, :, self.sources].unflatten(2, (CELLS, CELLS)) * self.inside


class CameraLidar(nn.Module):
    """Two encoders, the lift between them, convolutions from above at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(block(3, 16, 2), block(16, 24), block(24, 24))
        self.lidar = nn.Sequential(block(5, 24), block(24, 24))
        self.lift = Lift()
        self.down = nn.Sequential(block(24 + 24, 48, 2), block(48, 48), block(48, 48))
        self.level = nn.Sequential(nn.Conv2d(24 + 24, 16, 1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Sequential(block(48 + 16, 24), nn.Conv2d(24, CLASSES, 1))

    def forward(self, camera: torch.Tensor, pillars: torch.Tensor, depth: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,4,40,40]`, the class of every square metre ahead."""
        above = torch.cat([self.lift(self.camera(camera), depth), self.lidar(pillars)], dim=1)
        return {"logits": self.head(torch.cat([self.up(self.down(above)), self.level(above)], dim=1))}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return CameraLidar().eval()


def train(
    model: nn.Module,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 8,
    batch: int = 16,
    rate: float = 4e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on the three inputs and `label`; half of the scenes are mirrored.

    Args:
        model: Takes camera, pillars and depth, gives `{"logits": ...}`.
        data: Tensors with one row per scene; cells labelled -1 do not count.
        epochs: Passes over the data.
        batch: Scenes per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    steps = len(data["label"]) // batch
    weight = torch.tensor([0.3, 1.0, 1.0, 1.5])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(data["label"]))[: steps * batch].split(batch):
            scene = {name: data[name][rows] for name in (*INPUTS, "label")}
            if torch.rand(()) < 0.5:  # the last axis of all goes from one side to the other
                scene = {name: value.flip(-1) for name, value in scene.items()}
            logits = model(*(scene[name] for name in INPUTS))["logits"]
            loss = F.cross_entropy(logits, scene["label"], weight, ignore_index=-1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f} ({time.perf_counter() - start:.0f} s)")
    model.eval()
