"""Which frames of a film matter: CNN and temporal Transformer, attention to the sound. Plain torch, no edgemm.

    frames [B,24,1,24,24] ─▶ CNN per frame ─▶ temporal Transformer ─▶ attention to the sound ─▶ importance [B,24]
                                                                                ▲
    audio [B,24,16] ─▶ 2 convolutions over time ─▶ keys and values ─────────────┘

Scores of frames by self-attention follow Fajtl et al. 2018 (VASNet), the budget Zhang et al. 2016. The weights of
the attention to the sound are the second output `[B,24,24]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

FRAMES, BANDS, WIDTH, HEADS = 24, 16, 64, 4


class Layer(nn.Module):
    """A pre-norm Transformer layer; keys and values may be of another modality."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_query, self.norm_other, self.norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, steps: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns steps `[B,T,64]` that have looked at `other` `[B,S,64]`, and the weights `[B,T,S]`."""
        other = self.norm_other(other)
        seen, weights = self.attention(self.norm_query(steps), other, other)
        steps = steps + seen
        return steps + self.feed_forward(self.norm(steps)), weights


class FrameEncoder(nn.Module):
    """The same CNN on every frame, positions, and two Transformer layers over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(64, WIDTH),
        )
        self.position = nn.Parameter(0.1 * torch.randn(1, FRAMES, WIDTH))
        self.layers = nn.ModuleList([Layer(), Layer()])

    def see(self, frames: torch.Tensor) -> torch.Tensor:
        """Returns features of each frame by itself, `[B,24,64]`."""
        return self.cnn(frames.flatten(0, 1)).unflatten(0, (-1, FRAMES))

    def relate(self, seen: torch.Tensor) -> torch.Tensor:
        """Returns features of frames that know of each other, `[B,24,64]`."""
        steps = seen + self.position
        for layer in self.layers:
            steps, _ = layer(steps, steps)
        return steps

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Returns frames `[B,24,1,24,24]` as `[B,24,64]`."""
        return self.relate(self.see(frames))


class VideoSummary(nn.Module):
    """Frames that look at each other, then at the sound."""

    def __init__(self) -> None:
        super().__init__()
        self.frame_encoder = FrameEncoder()
        self.audio_encoder = nn.Sequential(
            nn.Conv1d(BANDS, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        )
        self.position = nn.Parameter(0.1 * torch.randn(1, FRAMES, WIDTH))
        self.listen = Layer()
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))
        self.name = nn.Linear(WIDTH, 10)
        """Says which digit a frame shows; only training asks."""

    def join(self, steps: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the outputs for related frames `[B,24,64]`."""
        heard = self.audio_encoder(audio.transpose(1, 2)).transpose(1, 2) + self.position
        joined, attention = self.listen(steps + self.position, heard)
        return {"importance": torch.sigmoid(self.head(joined).squeeze(2)), "attention": attention}

    def forward(self, frames: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `importance` `[B,24]` from 0 to 1, and `attention` of frames to moments of sound `[B,24,24]`."""
        return self.join(self.frame_encoder(frames), audio)


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return VideoSummary().eval()


def train(
    model: VideoSummary,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 10,
    batch: int = 32,
    rate: float = 2e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place to say the importance of frames, and what they show: that is where novelty is.

    Args:
        model: From `build`.
        data: `frames`, `audio`, `importance` and `digit`, one row per film.
        epochs: Passes over the data.
        batch: Films per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    steps = -(-len(data["digit"]) // batch) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(data["digit"]), generator=generator).split(batch):
            seen = model.frame_encoder.see(data["frames"][rows])
            said = model.join(model.frame_encoder.relate(seen), data["audio"][rows])["importance"]
            error = F.binary_cross_entropy(said, data["importance"][rows])
            loss = error + 0.2 * F.cross_entropy(model.name(seen).flatten(0, 1), data["digit"][rows].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += error.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / len(data['digit']):.3f}")
    model.eval()
