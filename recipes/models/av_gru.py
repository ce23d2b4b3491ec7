"""Audio-visual digits with a recurrent audio encoder and a gate. Plain torch, no edgemm.

    image [B,1,28,28] ─▶ convolutions ─▶ 128 ─┬─▶ gate × image + (1 − gate) × audio ─▶ logits [B,10]
    audio [B,1,40,50] ─▶ GRU over time ─▶ 128 ─┘

`build` is the factory for `edgemm convert --factory recipes/models/av_gru.py:build`; train it with
`av_digits.train`.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, WIDTH = 10, 128


class AudioGRU(nn.Module):
    """Two GRU layers over the frames; features are the mean and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(40, 96, num_layers=2, batch_first=True)
        self.project = nn.Linear(192, WIDTH)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Returns log-mel `[B,1,40,50]` as features `[B,128]`."""
        frames, _ = self.gru(audio.squeeze(1).transpose(1, 2))
        return torch.tanh(self.project(torch.cat([frames.mean(1), frames[:, -1]], dim=1)))


def image_encoder() -> nn.Sequential:
    """Returns image `[B,1,28,28]` to features `[B,128]`."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1, bias=False),
        nn.BatchNorm2d(48),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 9, WIDTH),
        nn.Tanh(),
    )


class AVGRU(nn.Module):
    """The gate decides per feature which modality to believe."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = image_encoder()
        self.audio_encoder = AudioGRU()
        self.gate = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, 96), nn.ReLU(), nn.Linear(96, CLASSES))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,10]`."""
        seen, heard = self.image_encoder(image), self.audio_encoder(audio)
        gate = torch.sigmoid(self.gate(torch.cat([seen, heard], dim=1)))
        return {"logits": self.head(gate * seen + (1 - gate) * heard)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return AVGRU().eval()
