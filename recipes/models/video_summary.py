"""Which frames of a film matter: CNN and temporal Transformer, attention to the sound. Plain torch, no edgemm.

    frames [B,24,1,24,24] ─▶ CNN per frame ─▶ temporal Transformer ─▶ attention to the sound ─▶ importance [B,24]
                                                                                ▲
    audio [B,24,16] ─▶ 2 convolutions over time ─▶ keys and values ─────────────┘

Frames enter the Transformer as the CNN's probabilities of ten classes. Which class is which changes nothing in a
summary, so training shuffles them: what it learns is whether a frame shows something that was not there before.

Scores of frames by self-attention follow Fajtl et al. 2018 (VASNet), the budget Zhang et al. 2016. The weights of
the attention to the sound are the second output `[B,24,24]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

FRAMES, BANDS, CLASSES, WIDTH, HEADS = 24, 16, 10, 64, 4


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
    """The same CNN on every frame, a vector per class, positions, and two Transformer layers over time."""

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
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(64, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )
        self.classes = nn.Parameter(0.5 * torch.randn(CLASSES, WIDTH))
        self.position = nn.Parameter(0.1 * torch.randn(1, FRAMES, WIDTH))
        self.layers = nn.ModuleList([Layer(), Layer()])

    def see(self, frames: torch.Tensor) -> torch.Tensor:
        """Returns how probable the classes are in each frame by itself, `[B,24,10]`."""
        return torch.softmax(self.cnn(frames.flatten(0, 1)), 1).unflatten(0, (-1, FRAMES))

    def relate(self, seen: torch.Tensor) -> torch.Tensor:
        """Returns features of frames that know of each other, `[B,24,64]`."""
        steps = seen @ self.classes + self.position
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
    epochs: int = 24,
    batch: int = 48,
    rate: float = 3e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place: first the CNN says what a frame shows, then the rest says what matters.

    The frames go through the trained CNN once; most of the work is over after that.

    Args:
        model: From `build`.
        data: `frames`, `audio`, `importance` and `digit`, one row per film.
        epochs: Passes over the films; the CNN has a quarter of them, over a quarter of the frames each.
        batch: Films per step.
        rate: Highest learning rate of the one-cycle schedules.
        report: Called with a line per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    learn_to_see(model, data, epochs=max(1, epochs // 4), rate=rate, generator=generator, report=report)
    with torch.no_grad():
        seen = torch.cat([model.frame_encoder.see(part) for part in data["frames"].split(batch)])
    learned = [p for name, p in model.named_parameters() if not name.startswith("frame_encoder.cnn")]
    steps = -(-len(seen) // batch) * epochs
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(seen), generator=generator).split(batch):
            order = torch.rand(len(rows), 1, CLASSES, generator=generator).argsort(2).expand(-1, FRAMES, -1)
            related = model.frame_encoder.relate(seen[rows].gather(2, order))
            said = model.join(related, data["audio"][rows])["importance"]
            loss = F.binary_cross_entropy(said, data["importance"][rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / len(seen):.4f}")


def learn_to_see(
    model: VideoSummary,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int,
    rate: float,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> None:
    """Trains the CNN to name the digit of a frame; frames of one shot are alike, so a quarter of them will do."""
    frames, digits = data["frames"].flatten(0, 1), data["digit"].flatten()
    quarter = len(frames) // 4
    cnn = model.frame_encoder.cnn.train()
    optimizer = torch.optim.AdamW(cnn.parameters(), lr=rate, weight_decay=0.02)
    total_steps = -(-quarter // 64) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * rate, total_steps=total_steps)
    for epoch in range(epochs):
        right = 0
        for rows in torch.randperm(len(frames), generator=generator)[:quarter].split(64):
            said = cnn(frames[rows])
            loss = F.cross_entropy(said, digits[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((said.argmax(1) == digits[rows]).sum())
        report(f"CNN, epoch {epoch + 1} of {epochs}: {right / quarter:.1%} of the digits")
    cnn.eval()
