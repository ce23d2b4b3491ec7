"""Spoken digits with a picture of what is said: CNN-GRU over the sound, CNN over the image, concat. Plain torch.

    audio [B,1,40,50] ─▶ 2 convolutions, frequency by 4, time by 2 ─▶ GRU over 25 steps ─▶ 96 ─┐
                                                                                     concat ─▶ logits [B,10]
    image [B,1,28,28] ─▶ 3 convolutions ─▶ 64 ──────────────────────────────────────────────┘

The sound's encoder is a CRNN (Choi et al. 2017): convolutions shrink the frequencies most, the GRU
reads the moments in order. Train it with `av_digits.train`, on the pairs of `datasets/av_digits.py`.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, BANDS, HIDDEN = 10, 40, 96


def block(channels_in: int, channels_out: int, stride: int | tuple[int, int]) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class AudioEncoder(nn.Module):
    """Convolutions with stride over frequency alone, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(block(1, 16, (2, 1)), block(16, 24, (2, 2)))
        self.gru = nn.GRU(24 * BANDS // 4, HIDDEN, batch_first=True)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Returns log-mel `[B,1,40,T]` as the mean of what the GRU says at each step, `[B,96]`."""
        steps, _ = self.gru(self.convolutions(audio).flatten(1, 2).transpose(1, 2))
        return steps.mean(1)


class AVSpeech(nn.Module):
    """Both encoders and two layers on their features side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = AudioEncoder()
        self.image_encoder = nn.Sequential(
            block(1, 16, 2), block(16, 32, 2), block(32, 64, 2), nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(HIDDEN + 64, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,10]`."""
        return {"logits": self.head(torch.cat([self.audio_encoder(audio), self.image_encoder(image)], dim=1))}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return AVSpeech().eval()
