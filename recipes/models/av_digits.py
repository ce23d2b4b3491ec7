"""Audio-visual digits: two convolutional encoders joined by concatenation. Plain torch, no edgemm.

    image [B,1,28,28] ─▶ 3 convolutions ─▶ 128 ─┐
                                                 concat ─▶ 192 ─▶ logits [B,10]
    audio [B,1,40,50] ─▶ 3 convolutions ─▶ 128 ─┘

`build` is the factory for `edgemm convert --factory recipes/models/av_digits.py:build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 10
MISSING_RATE = 0.1
"""Share of training samples whose image, and share whose audio, is blank: fusion must survive a silent sensor."""


def stem(channels: int) -> nn.Sequential:
    """Returns convolution 3×3 with stride 2 from one channel, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU, pooling by 2."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def image_encoder() -> nn.Sequential:
    """Returns image `[B,1,28,28]` to features `[B,128]`."""
    return nn.Sequential(stem(24), block(24, 48), block(48, 64), nn.Flatten(), nn.Linear(64 * 9, 128), nn.ReLU())


def audio_encoder() -> nn.Sequential:
    """Returns log-mel `[B,1,40,50]` to features `[B,128]`; time is averaged, frequency is kept."""
    return nn.Sequential(
        stem(24),
        block(24, 48),
        block(48, 96),
        nn.AvgPool2d((1, 6)),
        nn.Flatten(),
        nn.Linear(96 * 5, 128),
        nn.ReLU(),
    )


class AVDigits(nn.Module):
    """Encoders, then a two-layer head on both feature vectors side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = image_encoder()
        self.audio_encoder = audio_encoder()
        self.head = nn.Sequential(nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, CLASSES))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,10]`."""
        features = torch.cat([self.image_encoder(image), self.audio_encoder(audio)], dim=1)
        return {"logits": self.head(features)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return AVDigits().eval()


def blank(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the batch with some samples set to zero."""
    keep = torch.rand(len(batch), generator=generator) >= MISSING_RATE
    return batch * keep.view(-1, *[1] * (batch.ndim - 1))


def shuffle_within_class(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns a permutation that keeps every label: what belongs to row i now may come from another row."""
    shuffled = torch.randperm(len(labels), generator=generator)
    permutation = torch.empty_like(shuffled)
    permutation[torch.argsort(labels, stable=True)] = shuffled[torch.argsort(labels[shuffled], stable=True)]
    return permutation


def shift(batch: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Returns the batch rolled by the same small random step along both last axes."""
    steps = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(batch, steps, dims=(-2, -1))


def train(
    model: nn.Module,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 5,
    batch: int = 64,
    rate: float = 3e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on `image`, `audio` and `label`; the same data and threads give the same weights.

    Every epoch pairs each image with another recording of its digit, shifts both a little, and blanks some.

    Args:
        model: Takes `(image, audio)`, gives `{"logits": ...}`.
        data: Tensors with one row per sample.
        epochs: Passes over the data.
        batch: Samples per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    steps = len(data["label"]) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        partner = shuffle_within_class(data["label"], generator)
        for rows in torch.randperm(len(data["label"]), generator=generator)[: steps * batch].split(batch):
            image = shift(blank(data["image"][rows], generator), 2, generator)
            audio = shift(blank(data["audio"][partner[rows]], generator), 2, generator)
            loss = F.cross_entropy(model(image, audio)["logits"], data["label"][rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        report(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f} ({seconds:.0f} s)")
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Mapping[str, torch.Tensor], without: str = "") -> float:
    """Returns the share of right answers, 0 to 1; the input called `without` is set to zero."""
    right = 0
    for rows in torch.arange(len(data["label"])).split(500):
        image, audio = (data[n][rows] * (n != without) for n in ("image", "audio"))
        right += int((model(image, audio)["logits"].argmax(1) == data["label"][rows]).sum())
    return right / len(data["label"])
