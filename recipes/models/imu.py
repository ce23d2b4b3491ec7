"""Activities from a wrist: accelerometer and gyroscope encoders joined by concatenation. Plain torch, no edgemm.

`build` is the factory for `edgemm convert --factory recipes/models/imu.py:build`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 4


def encoder() -> nn.Sequential:
    """Returns signals `[B,3,100]` to features `[B,64]`."""
    return nn.Sequential(
        nn.BatchNorm1d(3),
        nn.Conv1d(3, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(32, 64, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


class IMU(nn.Module):
    """An encoder per sensor, one hidden layer on both."""

    def __init__(self) -> None:
        super().__init__()
        self.accel_encoder = encoder()
        self.gyro_encoder = encoder()
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, accel: torch.Tensor, gyro: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,4]`."""
        features = torch.cat([self.accel_encoder(accel), self.gyro_encoder(gyro)], dim=1)
        return {"logits": self.head(features)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return IMU().eval()


def train(model: nn.Module, data: Mapping[str, torch.Tensor], *, epochs: int = 60) -> None:
    """Trains `model` in place on `accel`, `gyro` and `label`, all samples in every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data["label"]), generator=generator).split(16):
            noise = 1 + 0.1 * torch.randn(len(rows), 1, 1, generator=generator)
            logits = model(data["accel"][rows] * noise, data["gyro"][rows] * noise)["logits"]
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, data["label"][rows], label_smoothing=0.05).backward()
            optimizer.step()
    model.eval()
