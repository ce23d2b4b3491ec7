"""Audio-visual digits where each modality's tokens attend to the other's. Plain torch, no edgemm.

    image [B,1,28,28] ─▶ 49 tokens ─▶ cross-attention to audio ─▶ mean ─┐
                                                                         concat ─▶ logits [B,10]
    audio [B,1,40,50] ─▶ 25 tokens ─▶ cross-attention to image ─▶ mean ─┘

`build` is the factory for `edgemm convert --factory recipes/models/av_attention.py:build`; train it with
`av_digits.train`.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, WIDTH, HEADS = 10, 96, 4


class CrossAttention(nn.Module):
    """A pre-norm transformer layer whose keys and values come from the other modality."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_query, self.norm_other, self.norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns tokens `[B,T,96]` that have looked at `other` `[B,S,96]`."""
        other = self.norm_other(other)
        seen, _ = self.attention(self.norm_query(tokens), other, other, need_weights=False)
        tokens = tokens + seen
        return tokens + self.feed_forward(self.norm(tokens))


class ImageTokens(nn.Module):
    """Three convolutions to 7×7 tokens with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, 49, WIDTH))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns image `[B,1,28,28]` as tokens `[B,49,96]`."""
        return self.convolutions(image).flatten(2).transpose(1, 2) + self.position


class AudioTokens(nn.Module):
    """Two convolutions over time, frequency as channels, to 25 tokens with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(40, 96, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(96, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, 25, WIDTH))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Returns log-mel `[B,1,40,50]` as tokens `[B,25,96]`."""
        return self.convolutions(audio.squeeze(1)).transpose(1, 2) + self.position


class AVAttention(nn.Module):
    """Tokens of both modalities, one cross-attention layer each way, means side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.audio_encoder = ImageTokens(), AudioTokens()
        self.image_to_audio, self.audio_to_image = CrossAttention(), CrossAttention()
        self.head = nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, CLASSES))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,10]`."""
        seen, heard = self.image_encoder(image), self.audio_encoder(audio)
        joined = [self.image_to_audio(seen, heard).mean(1), self.audio_to_image(heard, seen).mean(1)]
        return {"logits": self.head(torch.cat(joined, dim=1))}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return AVAttention().eval()
