"""Written and spoken digits, one of which may be noise: CNN and GRU, each behind a gate that closes on noise.

    image [B,1,28,28] ─▶ convolutions ─▶ tanh 96 ─▶ × gate ─┐
                                                             + ─▶ logits [B,10]
    audio [B,1,40,50] ─▶ GRU over time ─▶ tanh 96 ─▶ × gate ─┘
              both feature vectors ─▶ sigmoid ─▶ gates [B,2]

Arevalo et al., "Gated Multimodal Units for Information Fusion", 2017, with one gate per modality, which is an
output: it tells which sensor was believed. Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/gated.py:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, WIDTH = 10, 96
NOISE_RATE = 0.3
"""Share of training samples whose image is noise, and as many whose audio is; never both."""


def block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def image_encoder() -> nn.Sequential:
    """Returns image `[B,1,28,28]` to features `[B,96]`."""
    pool = nn.MaxPool2d(2)
    layers = (block(1, 16, 2), block(16, 32), pool, block(32, 48), pool, nn.Flatten(), nn.Linear(48 * 9, WIDTH))
    return nn.Sequential(*layers, nn.Tanh())


class AudioEncoder(nn.Module):
    """A convolution over time with stride 2, a GRU, the mean of its states."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(
            nn.Conv1d(40, 64, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.gru = nn.GRU(64, 96, batch_first=True)
        self.project = nn.Sequential(nn.Linear(96, WIDTH), nn.Tanh())

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Returns log-mel `[B,1,40,50]` as features `[B,96]`."""
        states, _ = self.gru(self.convolution(audio.squeeze(1)).transpose(1, 2))
        return self.project(states.mean(1))


class Gated(nn.Module):
    """Features of each modality times its gate, which looks at both."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.audio_encoder = image_encoder(), AudioEncoder()
        self.gate = nn.Linear(2 * WIDTH, 2)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,10]` and `gates` `[B,2]`, 0 to 1: how much image and audio are believed."""
        seen, heard = self.image_encoder(image), self.audio_encoder(audio)
        gates = torch.sigmoid(self.gate(torch.cat([seen, heard], dim=1)))
        joined = gates[:, :1] * seen + gates[:, 1:] * heard
        return {"logits": self.head(joined), "gates": gates}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return Gated().eval()


def train(
    model: nn.Module,
    arrays: Mapping[str, torch.Tensor],
    *,
    epochs: int = 6,
    rate: float = 4e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place; the same data and threads give the same weights.

    Every epoch pairs each image with another recording of its digit and replaces one of the two by noise in some.

    Args:
        model: Takes `(image, audio)`, gives `{"logits": [B,10]}`.
        arrays: `image`, `audio` and `label`, one row per sample; `image_noise` and `audio_noise` of any length.
        epochs: Passes over the data.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    labels = arrays["label"]
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        total, shuffled = 0.0, torch.randperm(len(labels), generator=generator)
        partner = torch.empty_like(shuffled)
        partner[torch.argsort(labels)] = shuffled[torch.argsort(labels[shuffled])]
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            dice = torch.rand(len(rows), generator=generator)
            image, audio = arrays["image"][rows], arrays["audio"][partner[rows]]
            for batch, noise, spoiled in (
                (image, arrays["image_noise"], dice < NOISE_RATE),
                (audio, arrays["audio_noise"], dice > 1 - NOISE_RATE),
            ):
                batch[spoiled] = noise[torch.randint(len(noise), (int(spoiled.sum()),), generator=generator)]
            step = torch.randint(-2, 3, (2,), generator=generator).tolist()
            logits = model(torch.roll(image, step, dims=(-2, -1)), audio)["logits"]
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / len(labels):.3f}")
    model.eval()
