"""Three modalities, joined in two steps: what is ahead and how it moves, then what that means here.

    camera [B,3,32,64] ─▶ convolutions ─▶ 96 ─┐
                                               concat ─▶ 96 ─┐
    radar  [B,1,32,32] ─▶ convolutions ─▶ 64 ─┘              concat ─▶ 96 ─▶ logits [B,4]
    tokens [B,14] ─▶ embedding ─▶ convolution ─▶ maximum ─▶ 64 ┘

Hierarchical (intermediate) fusion as in the survey of Baltrusaitis et al. 2018; a message that comes once a minute
leaves everything before the second join untouched. Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/camera_radar_text.py:build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

ACTIONS, VOCABULARY = 4, 64
INPUTS = ("camera", "radar", "tokens")


def block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class MessageEncoder(nn.Module):
    """Words in their neighbourhood; the strongest of each feature counts. Padding is word 0, all zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 48, padding_idx=0)
        self.near = nn.Sequential(nn.Conv1d(48, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 64, 3, padding=1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features `[B,64]` of words `[B,14]`."""
        return self.near(self.embedding(tokens).transpose(1, 2)).amax(2).relu()


class CameraRadarText(nn.Module):
    """Three encoders; camera and radar meet first, the message joins what they found."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(
            *(block(3, 24, 2), block(24, 48, 2), block(48, 64, 1), nn.MaxPool2d(2)),
            *(block(64, 64, 1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 4 * 8, 96), nn.ReLU()),
        )
        self.radar = nn.Sequential(
            *(block(1, 16, 2), block(16, 32, 1), nn.MaxPool2d(2), block(32, 48, 1)),
            *(nn.MaxPool2d((4, 1)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48 * 2 * 8, 64), nn.ReLU()),
        )
        self.message = MessageEncoder()
        self.ahead = nn.Sequential(nn.Linear(96 + 64, 96), nn.ReLU())
        self.decision = nn.Sequential(nn.Linear(96 + 64, 96), nn.ReLU(), nn.Linear(96, ACTIONS))

    def forward(self, camera: torch.Tensor, radar: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,4]`."""
        ahead = self.ahead(torch.cat([self.camera(camera), self.radar(radar)], dim=1))
        return {"logits": self.decision(torch.cat([ahead, self.message(tokens)], dim=1))}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return CameraRadarText().eval()


def train(
    model: nn.Module,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 12,
    batch: int = 64,
    rate: float = 3e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on `camera`, `radar`, `tokens` and `label`; equal data and threads, equal weights.

    One word in ten is hidden (word 1), half of the pictures are mirrored, and one sensor in twenty is silent.

    Args:
        model: Takes the three inputs, gives `{"logits": ...}`.
        data: Tensors with one row per sample.
        epochs: Passes over the data.
        batch: Samples per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    steps = len(data["label"]) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(data["label"]))[: steps * batch].split(batch):
            camera, radar, tokens = (data[name][rows] for name in INPUTS)
            camera = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, camera, camera.flip(3))
            camera = camera * (torch.rand(len(rows), 1, 1, 1) > 0.05)
            radar = radar * (torch.rand(len(rows), 1, 1, 1) > 0.05)
            tokens = torch.where((torch.rand(tokens.shape) < 0.1) & (tokens > 0), 1, tokens)
            logits = model(camera, radar, tokens)["logits"]
            loss = F.cross_entropy(logits, data["label"][rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f} ({time.perf_counter() - start:.0f} s)")
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Mapping[str, torch.Tensor], without: str = "") -> float:
    """Returns the share of right answers, 0 to 1; the input called `without` is set to zero."""
    right = 0
    for rows in torch.arange(len(data["label"])).split(500):
        inputs = [data[n][rows] * (n != without) for n in INPUTS]
        right += int((model(*inputs)["logits"].argmax(1) == data["label"][rows]).sum())
    return right / len(data["label"])
